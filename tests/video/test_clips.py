"""Which clips are cut out of a video is arithmetic: by length, number, stride and cuts."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvlm.core.errors import ParamsError
from fvlm.core.io import KEY, sample_key
from fvlm.core.params import Params, validate_params
from fvlm.shards.plan import Member, plan_shards
from fvlm.video.clips import STRETCH, DecodeParams, has_cut, plan_clips


def params(**values: Any) -> DecodeParams:
    given = {"num_frames": 4, "frame_size": 8, "clips_per_shard": 8, "max_failed_fraction": 0.1}
    return DecodeParams(**given | values)


def row(
    seconds: float,
    *,
    name: str = "a.mp4",
    part: tuple[float | None, float | None] = (None, None),
    cuts: Sequence[float] | None = None,
) -> dict[str, Any]:
    times = {"start": part[0], "end": part[1], "duration_seconds": seconds, "cuts": cuts}
    return {"key": sample_key(name), **times}


def spans(video: dict[str, Any], **values: Any) -> list[tuple[float, float]]:
    return [clip.span for clip in plan_clips(video, params(**values)).clips]


def test_by_default_a_clip_is_what_is_asked_of_the_video() -> None:
    assert spans(row(30.5)) == [(0.0, 30.5)]
    assert spans(row(30.5, part=(10.0, 20.0))) == [(10.0, 20.0)]
    assert spans(row(30.5, part=(10.0, 99.0))) == [(10.0, 30.5)]
    (clip,) = plan_clips(row(30.5), params()).clips
    assert clip.key == sample_key("a.mp4")


def test_clips_of_one_length_fill_the_video() -> None:
    one_after_the_other = [(0.0, 4.0), (4.0, 8.0)]
    assert spans(row(11.9), span_seconds=4.0, clips_per_video=0) == one_after_the_other
    assert spans(row(11.9), frames_per_second=1.0, clips_per_video=0) == one_after_the_other
    assert spans(row(8.0), span_seconds=4.0, clips_per_video=0) == one_after_the_other
    stride = {"span_seconds": 4.0, "clip_stride_seconds": 2.0, "clips_per_video": 0}
    assert spans(row(8.0), **stride) == [(0.0, 4.0), (2.0, 6.0), (4.0, 8.0)]
    part = row(100.0, part=(10.5, 19.0))
    assert spans(part, span_seconds=4.0, clips_per_video=0) == [(10.5, 14.5), (14.5, 18.5)]


def test_thirds_of_a_second_are_no_loss() -> None:
    """16 frames at 3 a second are 16/3 seconds: 9 of them fill 48 seconds to the end."""
    video = row(48.0, part=(0.0, float(Fraction(48))))
    found = spans(video, num_frames=16, frames_per_second=3.0, clips_per_video=0)
    assert len(found) == 9
    assert found[-1] == (float(Fraction(128, 3)), 48.0)
    rounded = float(Fraction(16, 3))  # less than 16/3 by the rounding
    assert Fraction(rounded) < Fraction(16, 3)
    assert len(spans(row(rounded), num_frames=16, frames_per_second=3.0)) == 1


def test_a_hash_chooses_and_more_clips_keep_those_that_were_there() -> None:
    video = row(1000.0)
    everything = spans(video, span_seconds=4.0, clips_per_video=0)
    few, many = (spans(video, span_seconds=4.0, clips_per_video=count) for count in (5, 50))
    assert len(few) == 5
    assert set(few) < set(many) < set(everything)
    assert few == sorted(few)
    other = spans(row(1000.0, name="b.mp4"), span_seconds=4.0, clips_per_video=5)
    assert other != few
    assert spans(row(9.0), span_seconds=4.0, clips_per_video=5) == [(0.0, 4.0), (4.0, 8.0)]


def test_no_cut_runs_through_a_clip_where_they_are_to_be_avoided() -> None:
    video = row(20.0, cuts=[1.0, 9.9, 12.0])
    kept = plan_clips(video, params(span_seconds=4.0, clips_per_video=0))
    assert (len(kept.clips), kept.candidates, kept.with_cuts) == (5, 5, 2)
    avoided = plan_clips(video, params(span_seconds=4.0, clips_per_video=0, cuts="avoid"))
    # 9.9 is in [8, 12); 12 begins a clip and runs through none.
    assert [clip.span for clip in avoided.clips] == [(4.0, 8.0), (12.0, 16.0), (16.0, 20.0)]
    assert [clip.key[-6:] for clip in avoided.clips] == ["000001", "000003", "000004"]
    assert spans(video, span_seconds=4.0, clips_per_video=3, cuts="avoid") == [
        clip.span for clip in avoided.clips
    ]


@pytest.mark.parametrize(
    ("cut", "inside"), [(0.0, False), (0.5, False), (0.51, True), (3.5, True), (3.51, False)]
)
def test_a_cut_counts_between_the_first_and_the_last_frame(cut: float, inside: bool) -> None:
    """4 frames of 4 seconds are those on display at 0.5, 1.5, 2.5 and 3.5 seconds."""
    assert has_cut((0.0, 4.0), [cut], 4) == inside


def test_keys_are_apart_in_order_and_short_enough() -> None:
    names = ["a.mp4", "a-000001.mp4", "x" * 300]
    keys = [
        [clip.key for clip in plan_clips(row(900.0, name=name), many).clips]
        for name in names
        for many in [params(span_seconds=1.0, clips_per_video=0)]
    ]
    everything = [key for video in keys for key in video]
    assert len(set(everything)) == 2700
    assert all(KEY.fullmatch(key) for key in everything)
    assert all(video == sorted(video) for video in keys)


def test_a_long_video_is_decoded_in_stretches() -> None:
    plan = plan_clips(row(7200.0), params(span_seconds=5.0, clips_per_video=0))
    stretches = plan.stretches()
    assert [clip for stretch in stretches for clip in stretch] == list(plan.clips)
    assert {len(stretch) for stretch in stretches} == {STRETCH, 1440 % STRETCH}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 29)
)
def test_a_stretch_lies_in_one_shard_and_one_more_changes_three(
    sizes: list[int], clips_per_shard: int, place: int
) -> None:
    members = [Member(f"{number:02d}", "content", clips) for number, clips in enumerate(sizes)]
    plan = plan_shards(members, clips_per_shard)
    assert [member for shard in plan for member in shard] == members
    without = plan_shards([m for m in members if m.key != f"{place:02d}"], clips_per_shard)
    assert sum(shard not in plan for shard in without) <= 3


def test_shards_have_the_mean_size_also_of_clips_that_stay_together() -> None:
    members = [Member(f"{number}", "content", 1 + number % 3) for number in range(5000)]
    shards = plan_shards(members, 32)
    mean = sum(member.clips for member in members) / len(shards)
    assert mean == pytest.approx(32, rel=0.1)


class Sections(Params):
    decode: DecodeParams


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"span_seconds": 4.0, "frames_per_second": 3.0}, "set one of them to 0"),
        ({"clips_per_video": 2}, "set span_seconds or frames_per_second"),
        ({"clip_stride_seconds": 2.0}, "set span_seconds or frames_per_second"),
        ({"span_seconds": -1.0}, "greater than or equal to 0"),
        ({"cuts": "drop"}, "'keep' or 'avoid'"),
    ],
)
def test_what_contradicts_itself_is_named(values: dict[str, Any], told: str) -> None:
    document = {"decode": params().model_dump() | values}
    with pytest.raises(ParamsError, match=told):
        validate_params(Sections, document, Path("params.yaml"))
