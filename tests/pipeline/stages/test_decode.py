"""The decode stage accounts for every video, and tries again what the machine got wrong."""

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.errors import FvlmError, VideoError
from fvlm.core.io import read_json, read_jsonl, write_jsonl
from fvlm.video import shards
from fvlm.video.reasons import Reason
from fvlm.video.worker import Workers
from pipeline import decode, paths

TIMINGS = Path(".state/timings/decode.json")
Manifest = dict[str, Any]


def run() -> Manifest:
    decode.main()
    manifest: Manifest = read_json(paths.FRAMES / "manifest.json")
    return manifest


@pytest.mark.usefixtures("project")
def test_accounting_adds_up(capfd: pytest.CaptureFixture[str]) -> None:
    manifest = run()
    metrics = read_json(paths.DECODE_METRICS)
    assert metrics["inputs"] == 10 == metrics["decoded"] + metrics["quarantined"]
    reasons = {name: count for name, count in metrics.items() if name.startswith("reason_")}
    assert sum(reasons.values()) == metrics["quarantined"] == 1 == len(manifest["quarantined"])
    assert metrics["shards"] == len(manifest["shards"]) > 2
    timings = read_json(TIMINGS)
    assert timings["reused"] == 0
    assert timings["clips_per_second"] > 0
    assert 0.01 < timings["peak_memory_gib"] < 64
    said = capfd.readouterr().err
    assert "decode: 10/10 clips" in said
    assert " clips/s" in said
    assert "decode error 1" in said
    run()
    assert read_json(paths.DECODE_METRICS) == metrics
    again = read_json(TIMINGS)
    assert (again["reused"], again["clips_per_second"]) == (10, None)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("reason", [Reason.TIMEOUT, Reason.CRASHED, Reason.OUT_OF_MEMORY])
def test_failures_of_the_machine_are_tried_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], reason: Reason
) -> None:
    expected = run()
    shutil.rmtree(".state")

    class Unlucky(Workers):
        def map(self, *args: Any, **kwargs: Any) -> Iterator[Any]:  # type: ignore[override]
            for request, outcome in super().map(*args, **kwargs):
                path = request["path"]
                bad = Path(path).name == "7.mp4"
                yield request, VideoError(reason, f"{path}: not now") if bad else outcome

    with monkeypatch.context() as patch:
        patch.setattr(shards, "Workers", Unlucky)
        manifest = run()
    (note,) = [note for note in manifest["quarantined"] if note["retry"]]
    assert note["reason"] == reason
    assert note["message"] == "the video: not now"
    assert "1 failures may be this machine's" in capfd.readouterr().out
    assert run() == expected  # nothing was edited in between
    assert (
        0 < read_json(TIMINGS)["reused"] < 10
    )  # the damaged video's shard is among the known ones
    assert run() == expected
    assert read_json(TIMINGS)["reused"] == 10


def test_a_video_that_vanished_or_changed_is_back_when_it_is_back(
    project: Path, filtered: Path
) -> None:
    rows = read_jsonl(paths.MANIFEST)
    for row in rows:  # own copies of two videos
        if row["video_id"] in ("2.mp4", "3.mp4"):
            row["path"] = str(shutil.copy(row["path"], project / row["video_id"]))
    write_jsonl(paths.MANIFEST, rows)
    expected = run()
    shutil.rmtree(".state")
    (project / "2.mp4").unlink()
    (project / "3.mp4").write_bytes((filtered / "videos" / "5.mp4").read_bytes())
    reasons = {note["video_id"]: note["reason"] for note in run()["quarantined"]}
    assert reasons == {
        "2.mp4": "not_a_file",
        "3.mp4": "changed_since_filter",
        "4.mp4": "decode_error",
    }
    for name in ("2.mp4", "3.mp4"):
        shutil.copy(filtered / "videos" / name, project / name)
    assert run() == expected


@pytest.mark.usefixtures("project")
def test_too_many_failures_stop_before_anything_is_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(
        text.replace("max_failed_fraction: 0.3", "max_failed_fraction: 0")
    )
    with pytest.raises(FvlmError, match=r"1 of 10 videos cannot be decoded.*\n  4\.mp4: decode_er"):
        decode.main()
    assert not paths.FRAMES.exists()
    assert not paths.DECODE_METRICS.exists()
    monkeypatch.setattr(shards, "LISTED", 0)  # as if there were many
    with pytest.raises(FvlmError, match=r"allows:\n  \.\.\. all 1: .*decode_failed.jsonl$"):
        decode.main()
    (note,) = read_jsonl(Path(".state/decode_failed.jsonl"))
    assert (note["video_id"], note["reason"]) == ("4.mp4", "decode_error")


@pytest.mark.usefixtures("project")
def test_bytes_depend_on_neither_workers_nor_order_nor_place_nor_timezone_nor_umask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    expected = run(), contents()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    umask = os.umask(0o077)
    request.addfinalizer(time.tzset)  # in reverse: the umask, the variable, then this
    request.addfinalizer(monkeypatch.undo)
    request.addfinalizer(partial(os.umask, umask))
    rows = read_jsonl(paths.MANIFEST)
    for row in rows:
        elsewhere = tmp_path / f"elsewhere-{row['video_id']}"
        row["path"] = str(shutil.copy(row["path"], elsewhere))
    write_jsonl(paths.MANIFEST, rows[::-1])
    for workers in (1, 3):
        shutil.rmtree(".state")
        with monkeypatch.context() as patch:
            patch.setattr(shards, "Workers", lambda name, n=workers: Workers(name, n))
            time.tzset()
            assert (run(), contents()) == expected


def contents() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths.FRAMES.iterdir()}
