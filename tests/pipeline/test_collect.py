"""The collect stage lists a folder, the same way every time, and fails with one message."""

import os
from pathlib import Path

import pytest

from fvlm.errors import SourceError
from fvlm.io import read_jsonl
from pipeline import collect


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(
        "collect:\n  source: videos\n  control_clips: 2\n  control_seed: 0\n"
    )
    (tmp_path / "videos").mkdir()
    return tmp_path


def test_lists_the_source(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.mp4", "a.mkv"):
        (project / "videos" / name).write_bytes(b"x" * 1000)
        os.utime(project / "videos" / name, ns=(1, 2))
    (project / "videos" / "b.txt").write_text("Seen.")
    collect.main()
    first = collect.VIDEOS.read_bytes()
    folder = project / "videos"
    assert read_jsonl(collect.VIDEOS) == [
        {
            "video_id": name,
            "path": str(folder / name),
            "size": 1000,
            "mtime_ns": 2,
            "caption": caption,
        }
        for name, caption in (("a.mkv", ""), ("b.mp4", "Seen."))
    ]
    assert "collect: 2 videos (0.0 MB), 1 with a caption, in videos" in capsys.readouterr().out
    collect.main()
    assert collect.VIDEOS.read_bytes() == first


def test_an_empty_source_leaves_nothing(project: Path) -> None:
    with pytest.raises(SourceError, match=r"no videos in .*videos; collect\.source must be"):
        collect.main()
    assert not (project / "data").exists()
