"""Changes of shot are found at the frame where they are, once for each content, in the sandbox."""

import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fvlm.core.errors import VideoError
from fvlm.core.io import sha256_file
from fvlm.video.cut_record import CutRecord, all_cuts
from fvlm.video.cuts import cuts_request, find_cuts
from fvlm.video.worker import map_isolated

SHOTS = (20, 15, 25)  # frames of each shot


def render(
    path: Path,
    shots: Sequence[int] = SHOTS,
    *,
    times: Sequence[int] | None = None,
    width: int = 96,
) -> Path:
    """Shots of noise that moves; 10 frames/s, B-frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "3"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, 64, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        number = 0
        for shot, count in enumerate(shots):
            picture = np.random.default_rng(shot).integers(0, 256, (8, width // 8, 3), np.uint8)
            large = picture.repeat(8, axis=0).repeat(8, axis=1)
            for step in range(count):
                frame = av.VideoFrame.from_ndarray(np.roll(large, step, axis=1), format="rgb24")
                frame.pts = times[number] if times else 100 * number
                frame.time_base = stream.codec_context.time_base
                container.mux(stream.encode(frame))
                number += 1
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_cuts_are_where_a_new_shot_begins(tmp_path: Path, name: str) -> None:
    assert find_cuts(str(render(tmp_path / name))) == pytest.approx([2.0, 3.5], abs=1e-3)


def test_times_are_those_of_the_frames_also_where_the_rate_varies(tmp_path: Path) -> None:
    times = np.cumsum([0, *([100, 40, 300] * 20)][:60]).tolist()
    found = find_cuts(str(render(tmp_path / "a.mkv", times=times)))
    assert found == pytest.approx([times[20] / 1000, times[35] / 1000], abs=1e-3)


def test_one_shot_has_none(tmp_path: Path) -> None:
    assert find_cuts(str(render(tmp_path / "a.mp4", (40,)))) == []


def test_a_video_whose_frames_change_size_is_searched(tmp_path: Path) -> None:
    """A joined transport stream; what cannot be compared is no cut, and no error."""
    render(tmp_path / "a.ts", (10, 10))
    render(tmp_path / "b.ts", (10,), width=64)
    joined = (tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes()
    (tmp_path / "c.ts").write_bytes(joined)
    found = find_cuts(str(tmp_path / "c.ts"))
    assert found[0] == pytest.approx(1.0, abs=0.01)
    assert len(found) <= 2


def video(path: Path, name: str = "") -> dict[str, Any]:
    return {"path": str(path), "sha256": sha256_file(path), "duration_seconds": 6.0, "name": name}


def test_a_content_is_searched_once_and_remembered(tmp_path: Path) -> None:
    first, other = render(tmp_path / "a.mp4"), render(tmp_path / "b.mp4", (30,))
    twin = Path(shutil.copy(first, tmp_path / "twin.mp4"))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(first.read_bytes()[:-2000])
    videos = [video(path, path.name) for path in (first, other, twin, broken)]
    record = CutRecord(tmp_path / "state" / "cuts.jsonl")
    found = {row["name"]: cuts for row, cuts in all_cuts(videos, record)}
    assert found["a.mp4"] == found["twin.mp4"] == pytest.approx([2.0, 3.5])
    assert found["b.mp4"] == []
    assert isinstance(found["broken.mp4"], VideoError)
    assert len((tmp_path / "state" / "cuts.jsonl").read_text().splitlines()) == 3
    # Nothing is opened again: there is no such file.
    renamed = [row | {"path": "elsewhere"} for row in videos]
    again = {row["name"]: cuts for row, cuts in all_cuts(renamed, CutRecord(record._path))}
    assert {name: str(cuts) for name, cuts in again.items()} == {
        name: str(cuts) for name, cuts in found.items()
    }


def test_the_content_must_be_the_one_that_was_filtered(tmp_path: Path) -> None:
    request = video(render(tmp_path / "a.mp4")) | {"sha256": "0" * 64}
    ((_, outcome),) = map_isolated(cuts_request, [request])
    assert isinstance(outcome, VideoError)
    assert outcome.reason == "changed_since_filter"
    record = CutRecord(tmp_path / "cuts.jsonl")
    assert [str(cuts) for _, cuts in all_cuts([request], record)] == [str(outcome)]
    assert not (tmp_path / "cuts.jsonl").exists()  # another run may see it otherwise
