"""Several clips of a video in one go: the frames of each call alone, and of a plain decode."""

from bisect import bisect_right
from pathlib import Path

import av
import numpy as np
import pytest

from fvlm.core.errors import VideoError
from fvlm.core.io import sha256_file
from fvlm.video.clips import DecodeParams, plan_clips
from fvlm.video.decode import DecodedClip, Wanted, decode_clips, decode_request, decode_video
from fvlm.video.facts import VideoFacts
from fvlm.video.probe import probe_video
from fvlm.video.sample import target_times
from fvlm.video.shards import FrameRequest, decode_item
from fvlm.video.worker import Outcome, map_isolated

SIZE = 16
CLIPS = [(0.0, 1.0), (0.5, 1.75), (1.5, 2.75), (2.0, None)]
NAMES = ["h264_b.mp4", "hevc.mkv", "vp9.webm", "mpeg4.avi", "av1.mp4", "h264.ts", "h264_vfr.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_each_clip_has_the_frames_on_display_at_its_times(
    videos: dict[str, Path], name: str
) -> None:
    path = str(videos[name])
    facts = probe_video(path)
    everything = decode_video(path, num_frames=facts.frames, size=SIZE)
    shown = everything.pts_seconds
    clips = decode_clips(path, Wanted(CLIPS, 5), size=SIZE)
    for (start, end), clip in zip(CLIPS, clips, strict=True):
        alone = decode_video(path, num_frames=5, size=SIZE, start=start, end=end)
        assert isinstance(clip, DecodedClip)
        assert clip.pts_seconds == alone.pts_seconds
        np.testing.assert_array_equal(clip.frames, alone.frames)
        places = [shown.index(seconds) for seconds in clip.pts_seconds]
        np.testing.assert_array_equal(clip.frames, everything.frames[places])
        stop = facts.duration_seconds if end is None else end
        ticks = target_times(round(start * 1e6), round(stop * 1e6), num_frames=5)
        on_display = [bisect_right(shown, float(time) / 1e6 + 1e-6) - 1 for time in ticks]
        if len(set(on_display)) == 5:  # else a frame that stays long gave its place to the next
            assert places == on_display


def test_a_clip_with_too_few_frames_costs_no_other(videos: dict[str, Path]) -> None:
    path = str(videos["h264_b.mp4"])
    short, long = decode_clips(path, Wanted([(1.0, 1.1), (1.0, 3.0)], 12), size=SIZE)
    assert isinstance(short, VideoError)
    assert short.reason == "too_few_frames"
    assert isinstance(long, DecodedClip)
    request = {"path": path, "sha256": sha256_file(Path(path)), "num_frames": 12, "size": SIZE}
    values, arrays = decode_request(request | {"clips": [(1.0, 1.1), (1.0, 3.0)]})
    assert [facts.get("reason") for facts in values["clips"]] == ["too_few_frames", None]
    np.testing.assert_array_equal(arrays["frames"], long.frames[None])
    with pytest.raises(VideoError, match="frames, 12 are needed"):
        decode_request(request | {"clips": [(1.0, 1.1), (900.0, 901.0)]})


def render_film(path: Path, *, hours: float, rate: int) -> None:
    """A film of few pixels that is dark at the beginning and bright at the end of each minute."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(round(hours * 3600 * rate)):
            shade = number % (60 * rate) * 255 // (60 * rate)
            picture = np.full((64, 64, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("hours", [0.2, pytest.param(2.0, marks=pytest.mark.slow)])
def test_all_clips_of_a_film_in_little_memory(tmp_path: Path, hours: float) -> None:
    """In the sandbox, with its limit; and one more clip costs no more than its frames."""
    path = tmp_path / "film.mp4"
    render_film(path, hours=hours, rate=4)
    params = DecodeParams(
        num_frames=16,
        frame_size=128,
        frames_per_second=2.0,
        clips_per_video=0,
        clips_per_shard=64,
        max_failed_fraction=0,
    )
    facts: VideoFacts = probe_video(str(path))
    row = vars(facts) | {"key": "film", "path": str(path), "sha256": sha256_file(path)}
    row |= {"start": None, "end": None, "cuts": None}
    plan = plan_clips(row, params)
    assert len(plan.clips) == hours * 3600 / 8
    request = FrameRequest([], params.num_frames, params.frame_size)
    items = [decode_item(row, stretch, request) for stretch in plan.stretches()]
    shades = []
    for _, outcome in map_isolated(
        decode_request, items, in_order=True, workers=1, memory_bytes=2**30
    ):
        assert isinstance(outcome, Outcome), outcome
        shades += outcome.arrays["frames"].mean(axis=(1, 2, 3, 4)).tolist()
    assert len(shades) == len(plan.clips)
    middles = [(8 * number + 4) % 60 / 60 * 255 for number in range(len(shades))]
    spread = [abs(a - b) for a, b in zip(shades, middles, strict=True)]
    assert np.median(spread) < 4  # those over a minute's border are another mean
