"""Facts are remembered for untouched files only, and a damaged record costs probes, not facts."""

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from fvlm.core.errors import VideoError
from fvlm.core.identity import closure
from fvlm.video.facts import PROBE, FactRecord, Facts, probe_all
from fvlm.video.reasons import Reason


def render(path: Path, seconds: int = 1) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10 * seconds):
            picture = np.full((48, 64, 3), number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def probe(folder: Path, *paths: Path) -> dict[str, Facts | VideoError]:
    videos = [{"path": str(path)} for path in paths]
    found = probe_all(videos, FactRecord(folder / "record.jsonl"))
    return {video["path"]: outcome for video, outcome in found}


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on a probe is an error."""

    def refuse(_function: str, items: list[object]) -> list[object]:
        assert not items
        return []

    monkeypatch.setattr("fvlm.video.worker.map_isolated", refuse)


@pytest.fixture
def probed(tmp_path: Path) -> tuple[Path, Path]:
    """A video and a broken file, both on record."""
    video, broken = render(tmp_path / "v.mp4"), tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 100)
    outcomes = probe(tmp_path, video, broken)
    facts, error = outcomes[str(video)], outcomes[str(broken)]
    assert isinstance(facts, Facts)
    assert facts.duration_seconds == pytest.approx(1.0)
    assert (facts.frames, facts.width) == (10, 64)
    assert isinstance(error, VideoError)
    assert error.reason == Reason.UNREADABLE
    return video, broken


@pytest.mark.usefixtures("probed", "no_worker")
def test_untouched_files_are_not_opened(tmp_path: Path) -> None:
    outcomes = probe(tmp_path, tmp_path / "v.mp4", tmp_path / "broken.mp4")
    assert isinstance(outcomes[str(tmp_path / "v.mp4")], Facts)
    error = outcomes[str(tmp_path / "broken.mp4")]
    assert isinstance(error, VideoError)
    assert error.reason == Reason.UNREADABLE


def test_changed_content_is_noticed_under_the_same_time(
    tmp_path: Path, probed: tuple[Path, Path]
) -> None:
    video, _ = probed
    status = video.stat()
    content = bytearray(video.read_bytes())
    content[-1] ^= 1
    video.write_bytes(content)
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))
    before = (tmp_path / "record.jsonl").read_text()
    after = probe(tmp_path, video)[str(video)]
    assert not isinstance(after, Facts) or after.sha256 not in before


@pytest.mark.parametrize("damage", [b"", b"\xff\x00garbage", b'{"path"', b"[1]\nnull\n3\n"])
def test_a_damaged_record_is_rebuilt(
    tmp_path: Path, probed: tuple[Path, Path], damage: bytes, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "record.jsonl").write_bytes(damage)
    assert isinstance(probe(tmp_path, *probed)[str(probed[0])], Facts)
    request.getfixturevalue("no_worker")
    assert isinstance(probe(tmp_path, *probed)[str(probed[0])], Facts)


def test_missing_files_and_passing_failures_are_not_remembered(tmp_path: Path) -> None:
    record = FactRecord(tmp_path / "record.jsonl")
    for reason in (Reason.TIMEOUT, Reason.CRASHED, Reason.OUT_OF_MEMORY):
        record.put("v.mp4", [1], VideoError(reason, "busy machine"))
    assert not (tmp_path / "record.jsonl").exists()
    [(_, outcome)] = probe_all([{"path": str(tmp_path / "missing.mp4")}], record)
    assert isinstance(outcome, VideoError)
    assert outcome.reason == Reason.NOT_A_FILE


def test_fifos_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    videos = [{"path": str(tmp_path / "fifo.mp4")}]
    [(_, outcome)] = probe_all(videos, FactRecord(tmp_path / "record.jsonl"))
    assert isinstance(outcome, VideoError)
    assert outcome.reason == Reason.NOT_A_FILE


def test_facts_depend_on_the_modules_that_probing_imports() -> None:
    module = PROBE.split(":")[0]
    code = f"import sys, {module}; print(*[m for m in sys.modules if 'fvlm.video.' in m])"
    folder = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True)
    imported = set(done.stdout.decode().split())
    assert len(imported) > 3
    assert imported <= closure((module,)).keys()


def test_a_file_is_probed_once_for_all_its_parts(tmp_path: Path, probed: tuple[Path, Path]) -> None:
    """Also one that cannot be read: a line of the record for each file."""
    parts = [
        {"path": str(path), "start": start, "end": None, "part": number}
        for number, start in enumerate((0.0, 1.0, 2.0))
        for path in probed
    ]
    record = tmp_path / "parts.jsonl"
    found = [(video["path"], video["part"]) for video, _ in probe_all(parts, FactRecord(record))]
    assert sorted(found) == sorted((part["path"], part["part"]) for part in parts)
    assert len(record.read_text().splitlines()) == len(probed)
