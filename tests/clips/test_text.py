"""Captions are joined by sample key, whatever the order; their hash follows text and key."""

from pathlib import Path

import pytest

from fvlm.clips.text import CaptionTable, table_beside
from fvlm.core.errors import FvlmError
from fvlm.core.rows import write_rows

CAPTIONS = {"b": "A dog.\nAnd a cat.", "a": "", "d": "Straße \udcff", "c": "  "}


def write(path: Path, captions: dict[str, str]) -> Path:
    rows = ({"key": k, "video_id": f"{k}.mp4", "caption": text} for k, text in captions.items())
    write_rows(path, rows)
    return path


def test_each_clip_has_its_own(tmp_path: Path) -> None:
    table = CaptionTable(write(tmp_path / "captions.jsonl", CAPTIONS), ["a", "b", "c", "d", "e"])
    assert [table[row] for row in range(5)] == ["", CAPTIONS["b"], "", CAPTIONS["d"], ""]
    assert len(table) == 2
    assert not CaptionTable(tmp_path / "captions.jsonl", ["a", "e"])


def test_of_many_rows_in_several_files(tmp_path: Path) -> None:
    many = {f"{number}": f"number {number}" for number in range(20_000)}
    table = CaptionTable(write(tmp_path / "captions.jsonl", many), list(reversed(many)))
    assert (tmp_path / "captions.1.jsonl").exists()
    assert [table[row] for row in (0, 7, 19_999)] == ["number 19999", "number 19992", "number 0"]


def test_the_hash_is_that_of_the_clips_and_their_words(tmp_path: Path) -> None:
    def digest(captions: dict[str, str], keys: str = "abd") -> str:
        return CaptionTable(write(tmp_path / "c.jsonl", captions), list(keys)).digest()

    same = digest(CAPTIONS)
    assert digest(dict(reversed(CAPTIONS.items())) | {"other": "of another split"}) == same
    assert digest(CAPTIONS | {"b": "A dog."}) != same
    assert digest(CAPTIONS | {"a": CAPTIONS["b"], "b": ""}) != same
    assert digest(CAPTIONS, "ab") != same
    assert digest({"x": "A cat."}, "x") != digest({"y": "A cat."}, "y")


def test_no_table_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FvlmError, match=r"captions.jsonl not found; run `dvc repro filter`"):
        CaptionTable(table_beside(tmp_path / "encode"), ["a"])
