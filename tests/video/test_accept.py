"""Acceptance and splits are pure rules: bounds included, duplicates by content, stable splits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvlm.core.errors import ParamsError, VideoError
from fvlm.core.params import Params, validate_params
from fvlm.video.accept import (
    Accepted,
    Counts,
    FilterParams,
    Verdict,
    classify,
    hold_out,
)
from fvlm.video.facts import Facts

PARAMS = FilterParams(min_seconds=20.0, max_seconds=60.0, val_fraction=0.3, max_held_out=0)
NO_CLIP = Fraction(0)  # a clip is the whole video
video_ids = st.lists(st.text(max_size=8), unique=True, min_size=2, max_size=20)
few = settings(max_examples=50, deadline=None)  # the machine may be busy


def row(
    name: str, group: str = "", start: float | None = None, end: float | None = None
) -> dict[str, Any]:
    """What acceptance reads of a row of the listing."""
    return {"video_id": name, "group": group or name, "start": start, "end": end}


def facts(seconds: float, sha256: str = "0") -> Facts:
    return Facts(seconds, 24.0, int(24 * seconds), 640, 360, "h264", "mp4", 0, 1, 1, sha256)


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [
        (19.999, Verdict("filtered", "too_short", "19.999 s < 20 s")),
        (20.0, Verdict("accepted")),
        (60.0, Verdict("accepted")),
        (60.042, Verdict("filtered", "too_long", "60.042 s > 60 s")),
        (0.0, Verdict("filtered", "too_short", "0.000 s < 20 s")),
        (19.99999, Verdict("filtered", "too_short", "19.99999 s < 20 s")),
        (60.0004, Verdict("filtered", "too_long", "60.0004 s > 60 s")),
    ],
)
def test_bounds_are_included(seconds: float, verdict: Verdict) -> None:
    assert classify(row("a"), facts(seconds), PARAMS, NO_CLIP) == verdict


@pytest.mark.parametrize(
    ("start", "end", "clip", "reason", "message"),
    [
        (10.0, 35.0, 0, "", ""),
        (100.0, None, 0, "", ""),
        (None, 25.0, 0, "", ""),
        (100.0, 900.0, 0, "", ""),  # an end behind the file's is the file's
        (10.0, 25.0, 0, "too_short", "15.000 s < 20 s, from 10.000 to 25.000 s of"),
        (10.0, None, 0, "too_long", "110.000 s > 60 s, from 10.000 to 120.000 s of"),
        (120.0, 130.0, 0, "outside_video", "begins at 120 s of the file's 120.000 s"),
        (10.0, 35.0, 25, "", ""),
        (10.0, 35.0, Fraction(76, 3), "shorter_than_clip", "25.000 s < 25.3333 s of a clip, from"),
    ],
)  # fmt: skip
def test_bounds_are_those_of_the_part_that_is_asked_for(
    start: float | None, end: float | None, clip: Fraction, reason: str, message: str
) -> None:
    verdict = classify(row("a", start=start, end=end), facts(120), PARAMS, Fraction(clip))
    assert verdict.reason == reason
    assert verdict.message.startswith(message)
    assert verdict.status == ("filtered" if reason else "accepted")


def test_rounding_costs_no_clip() -> None:
    """A duration is a rounded number: three times a third of a second is a second."""
    thirds = Fraction(61, 3)
    assert classify(row("a"), facts(float(thirds)), PARAMS, thirds) == Verdict("accepted")


def test_a_failed_probe_keeps_its_reason() -> None:
    verdict = classify(row("a"), VideoError("no_frames", "nothing to show"), PARAMS, NO_CLIP)
    assert verdict == Verdict("quarantined", "no_frames", "nothing to show")


def test_the_first_of_equal_contents_is_kept() -> None:
    outcomes: dict[str, Facts | VideoError] = {
        "c": facts(30, "x"),
        "b": facts(30, "x"),
        "a": facts(70, "y"),  # not accepted, so it is nobody's original
        "d": facts(30, "y"),
    }
    accepted = Accepted(PARAMS)
    rows = {name: row(name, "one film" if name == "d" else "") for name in outcomes}
    for name, outcome in outcomes.items():
        accepted.add(rows[name], outcome)
    assert accepted.sizes() == {"b": 1, "one film": 1}
    verdicts = {name: accepted.verdict(rows[name], outcome) for name, outcome in outcomes.items()}
    assert {name: verdict.reason for name, verdict in verdicts.items()} == {
        "c": "duplicate_content",
        "b": "",
        "a": "too_long",
        "d": "",
    }
    assert verdicts["c"].message == "same content as b"


def test_other_parts_of_a_file_are_no_duplicates() -> None:
    accepted, film = Accepted(PARAMS), facts(120, "x")
    parts = [row("a", "film", 0, 30), row("b", "film", 30, 60), row("c", "film", 30, 60)]
    parts += [row("d", "film", 90, None), row("e", "film", 90, 500)]
    for part in parts:
        accepted.add(part, film)
    reasons = [accepted.verdict(part, film).reason for part in parts]
    assert reasons == ["", "", "duplicate_content", "", "duplicate_content"]
    assert accepted.sizes() == {"film": 3}


def test_what_is_refused_later_is_in_no_split() -> None:
    accepted, refusal = Accepted(PARAMS), Verdict("filtered", "cuts_everywhere", "no clip")
    for name in "ab":
        accepted.add(row(name), facts(30, name))
    accepted.refuse("a", refusal)
    assert accepted.verdict(row("a"), facts(30, "a")) == refusal
    assert accepted.sizes() == {"b": 1}


def assign(names: Sequence[str], val_fraction: float) -> dict[str, str]:
    """Splits of videos that are groups of their own."""
    return assign_splits({name: name for name in names}, val_fraction)


def assign_splits(
    groups: Mapping[str, str], val_fraction: float, max_held_out: int = 0
) -> dict[str, str]:
    """Splits of videos whose groups are given."""
    held_out = hold_out(Counter(groups.values()), val_fraction, max_held_out)
    splits = {name: "val" if group in held_out else "train" for name, group in groups.items()}
    return splits if held_out else {}


@few
@given(video_ids, st.floats(0.001, 0.999))
def test_both_splits_have_videos(names: list[str], val_fraction: float) -> None:
    splits = assign(names, val_fraction)
    assert set(splits) == set(names)
    assert set(splits.values()) == {"train", "val"}


@few
@given(video_ids, st.floats(0.01, 0.9), st.floats(0.0, 0.09))
def test_more_validation_never_moves_a_video_back(
    names: list[str], val_fraction: float, more: float
) -> None:
    before, after = assign(names, val_fraction), assign(names, val_fraction + more)
    assert all(after[name] == "val" for name in names if before[name] == "val")


def test_other_videos_do_not_move_a_video() -> None:
    names = [f"{number}.mp4" for number in range(1000)]
    some, many = assign(names[:500], 0.3), assign(names, 0.3)
    assert all(some[name] == many[name] for name in some)
    assert 250 < sum(split == "val" for split in many.values()) < 350


def test_names_that_are_not_utf8_have_a_split() -> None:
    assert set(assign(["\udcff.mp4", "a.mp4"], 0.5).values()) == {"train", "val"}


@pytest.mark.parametrize("names", [[], ["a.mp4"]])
def test_fewer_than_two_videos_have_no_split(names: list[str]) -> None:
    assert assign(names, 0.3) == {}


def test_clips_of_one_film_are_on_one_side() -> None:
    groups = {f"{film}-{clip}.mp4": f"film {film}" for film in range(50) for clip in range(7)}
    splits = assign_splits(groups, 0.4)
    assert set(splits) == set(groups)
    sides = {film: {splits[f"{film}-{clip}.mp4"] for clip in range(7)} for film in range(50)}
    assert all(len(side) == 1 for side in sides.values())
    assert {"train", "val"} == {split for side in sides.values() for split in side}
    assert assign_splits(dict.fromkeys(groups, "one film"), 0.4) == {}


def test_no_more_are_held_out_than_asked_for() -> None:
    names = [f"{number}.mp4" for number in range(1000)]
    for groups in ({name: name for name in names}, {name: name[0] for name in names}):
        free, bound = assign_splits(groups, 0.3), assign_splits(groups, 0.3, 150)
        held_out = {name for name, split in bound.items() if split == "val"}
        assert 0 < len(held_out) <= 150
        assert held_out < {name for name, split in free.items() if split == "val"}
        more = assign_splits({**groups, "one more.mp4": "one more.mp4"}, 0.3, 150)
        assert sum(more[name] != bound[name] for name in names) <= len(groups) - len(names) + 1


def test_counts_add_up() -> None:
    rows: list[dict[str, Any]] = [
        {"status": "accepted", "reason": "", "split": "val"},
        {"status": "accepted", "reason": "", "split": "train"},
        {"status": "filtered", "reason": "too_short", "split": None},
        {"status": "quarantined", "reason": "no_frames", "split": None},
    ]
    counts = Counts()
    for row in rows:
        counts.add(row)
    assert counts.figures() == {
        "inputs": 4,
        "accepted": 2,
        "accepted_train": 1,
        "accepted_val": 1,
        "filtered": 1,
        "quarantined": 1,
        "reason_no_frames": 1,
        "reason_too_short": 1,
    }


class Sections(Params):
    filter: FilterParams


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_seconds": 61.0}, r"min_seconds \(61\) must be <= max_seconds \(60\)"),
        ({"min_seconds": -1.0}, r"filter\.min_seconds: must be greater than or equal to 0"),
        ({"max_seconds": "60"}, r"filter\.max_seconds: expected number, got '60'"),
        ({"val_fraction": 0.0}, r"filter\.val_fraction: must be greater than 0"),
        ({"val_fraction": 1.0}, r"filter\.val_fraction: must be less than 1"),
        ({"min_second": 1.0}, r"filter\.min_second: unknown key; did you mean `min_seconds`"),
    ],
)
def test_bad_parameters(change: dict[str, Any], message: str) -> None:
    section = PARAMS.model_dump() | change
    with pytest.raises(ParamsError, match=message):
        validate_params(Sections, {"filter": section}, Path("params.yaml"))
