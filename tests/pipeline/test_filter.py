"""The filter stage gives every listed video one row with a status, and remembers its probes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fvlm.core.errors import FvlmError
from fvlm.core.io import read_json, read_jsonl, sample_key, sha256_file
from pipeline import collect, filter, paths

PARAMS = """
collect: {source: videos, control_clips: 2, control_seed: 0}
decode: {num_frames: 3, frame_size: 8, clips_per_shard: 2, max_failed_fraction: 0.1}
filter: {min_seconds: 2.0, max_seconds: 4.0, val_fraction: 0.3, max_held_out: 0}
"""


def render(path: Path, seconds: int, shade: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5 * seconds):
            picture = np.full((48, 64, 3), shade, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "videos").mkdir()
    return tmp_path


def run() -> list[dict[str, Any]]:
    collect.main()
    filter.main()
    return read_jsonl(paths.MANIFEST)


def test_every_video_has_a_row(project: Path) -> None:
    videos = project / "videos"
    render(videos / "a.mp4", 3, 10)
    render(videos / "c.mkv", 2, 20)
    render(videos / os.fsdecode(b"caf\xe9 \n.avi"), 4, 30)
    render(videos / "short.mp4", 1, 40)
    render(videos / "long.mp4", 5, 50)
    shutil.copy(videos / "a.mp4", videos / "b.mp4")
    (videos / "broken.mp4").write_bytes((videos / "a.mp4").read_bytes()[:300])
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "a.txt").write_text("Dark.")

    rows = {row["video_id"]: row for row in run()}
    statuses = {name: (row["status"], row["reason"]) for name, row in rows.items()}
    broken = statuses.pop("broken.mp4")
    assert broken[0] == "quarantined"
    assert broken[1]
    assert statuses == {
        "a.mp4": ("accepted", ""),
        "b.mp4": ("filtered", "duplicate_content"),
        "c.mkv": ("accepted", ""),
        "caf\udce9 \n.avi": ("accepted", ""),
        "empty.mp4": ("quarantined", "empty_file"),
        "long.mp4": ("filtered", "too_long"),
        "short.mp4": ("filtered", "too_short"),
    }
    accepted = rows["a.mp4"]
    assert accepted["sha256"] == sha256_file(videos / "a.mp4")
    assert "caption" not in accepted
    told = {"key": sample_key("a.mp4"), "video_id": "a.mp4", "caption": "Dark."}
    assert read_jsonl(paths.CAPTIONS) == [told]  # b has none: it is filtered
    assert accepted["duration_seconds"] == pytest.approx(3.0)
    assert (accepted["frames"], accepted["width"], accepted["height"]) == (15, 64, 48)
    assert {row["split"] for row in rows.values()} == {"train", "val", None}
    assert all((row["split"] is None) == (row["status"] != "accepted") for row in rows.values())
    assert all((row["sha256"] is None) == (row["status"] != "accepted") for row in rows.values())
    assert rows["empty.mp4"]["duration_seconds"] is None
    assert list(rows) == sorted(rows)
    assert len({row["key"] for row in rows.values()}) == len(rows)

    counts = read_json(paths.FILTER_METRICS)
    assert counts["inputs"] == 8
    assert counts["inputs"] == counts["accepted"] + counts["filtered"] + counts["quarantined"]
    assert counts["accepted"] == counts["accepted_train"] + counts["accepted_val"] == 3


def test_touching_and_rerunning_change_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, shade in (("a.mp4", 10), ("b.mp4", 20)):
        render(project / "videos" / name, 3, shade)
    run()
    manifest, metrics = paths.MANIFEST.read_bytes(), paths.FILTER_METRICS.read_bytes()
    os.utime(project / "videos" / "a.mp4")
    run()
    assert (paths.MANIFEST.read_bytes(), paths.FILTER_METRICS.read_bytes()) == (manifest, metrics)

    def refuse(_function: str, items: list[object]) -> list[object]:
        assert not items
        return []

    monkeypatch.setattr("fvlm.video.worker.map_isolated", refuse)
    (project / "params.yaml").write_text(PARAMS.replace("0.3", "0.31"))
    run()


def test_a_file_that_vanished_is_quarantined(project: Path) -> None:
    for number in range(3):
        render(project / "videos" / f"{number}.mp4", 3, number)
    collect.main()
    (project / "videos" / "1.mp4").unlink()
    filter.main()
    assert read_jsonl(paths.MANIFEST)[1]["reason"] == "not_a_file"


@pytest.mark.parametrize("accepted", [0, 1])
def test_too_few_videos_is_an_error_with_the_reasons(project: Path, accepted: int) -> None:
    render(project / "videos" / "short.mp4", 1, 10)
    if accepted:
        render(project / "videos" / "good.mp4", 3, 10)
    with pytest.raises(FvlmError) as error:
        run()
    message = str(error.value)
    assert f"{accepted} of {accepted + 1} videos accepted" in message
    assert "1 reason_too_short" in message
    assert "collect.source" in message
    assert "filter.min_seconds" in message
    rows = [json.loads(line) for line in paths.MANIFEST.read_text().splitlines()]
    assert rows[-1]["reason"] == "too_short"
