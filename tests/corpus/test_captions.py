"""Captions beside a video; faults are named together."""

from pathlib import Path

import pytest

from fvlm.core.errors import SourceError
from fvlm.corpus.captions import MAX_CAPTION_BYTES
from tests.corpus.conftest import listed, touch


def test_captions_beside_a_video(tmp_path: Path) -> None:
    for name in ("both", "json", "none", "null"):
        touch(tmp_path / f"{name}.mp4")
    touch(tmp_path / "both.txt", b" text \n")
    touch(tmp_path / "both.json", b'{"caption": "json"}')
    touch(tmp_path / "json.json", b'{"caption": "two\\nlines", "other": 1}')
    touch(tmp_path / "null.json", b'{"caption": null}')
    captions = {video.video_id: video.caption for video in listed(str(tmp_path))}
    assert captions == {
        "both.mp4": "text",
        "json.mp4": "two\nlines",
        "none.mp4": "",
        "null.mp4": "",
    }


def test_faulty_captions_are_named_together(tmp_path: Path) -> None:
    faults = {
        "latin.txt": b"caf\xe9",
        "list.json": b"[1]",
        "number.json": b'{"caption": 3}',
        "broken.json": b"{",
        "deep.json": b"[" * 50000,
        "long.txt": b"x" * (MAX_CAPTION_BYTES + 1),
    }
    for name, content in faults.items():
        touch(tmp_path / name, content)
        touch(tmp_path / name.replace(".txt", ".mp4").replace(".json", ".mp4"))
    with pytest.raises(SourceError) as error:
        listed(str(tmp_path))
    assert all(f"{tmp_path / name}: " in str(error.value) for name in faults)
