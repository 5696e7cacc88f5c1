"""Rows in several files: the same rows come back, and one more changes few bytes."""

from pathlib import Path
from typing import Any

import pytest

from fvlm.core import rows as module
from fvlm.core.errors import FvlmError
from fvlm.core.rows import Rows, parts_of, write_rows


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"video_id": f"{number * 7919 % 99991:05d} \u00e4\udcff", "n": 1} for number in range(count)
    ]


def listed(count: int) -> list[dict[str, Any]]:
    return sorted(rows(count), key=lambda row: str(row["video_id"]))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of about 24 rows."""
    monkeypatch.setattr(module, "FEWEST", 8)
    monkeypatch.setattr(module, "MORE", 16)


def test_a_few_thousand_rows_are_one_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "videos.jsonl", rows(module.FEWEST - 1))
    assert [path.name for path in parts_of(tmp_path / "videos.jsonl")] == ["videos.jsonl"]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("count", [0, 1, 7, 8, 500])
def test_rows_come_back_in_their_order(tmp_path: Path, count: int) -> None:
    path = tmp_path / "videos.jsonl"
    write_rows(path, iter(rows(count)))
    again = Rows(path)
    assert list(again) == list(again) == rows(count)
    assert again.count() == count
    assert len(list(tmp_path.iterdir())) == len(list(parts_of(path)))
    assert (len(list(parts_of(path))) > 10) == (count == 500)


@pytest.mark.usefixtures("short")
def test_one_more_row_changes_one_or_two_files(tmp_path: Path) -> None:
    path, before = tmp_path / "videos.jsonl", listed(2000)
    write_rows(path, before)
    files = {part.read_bytes() for part in parts_of(path)}
    for number in (3, 777, 1999):
        more = sorted([*before, {"video_id": f"{number * 31:05d}+", "n": 2}], key=str)
        write_rows(path, more)
        assert list(Rows(path)) == more
        assert 1 <= len({part.read_bytes() for part in parts_of(path)} - files) <= 4 < len(files)


@pytest.mark.usefixtures("short")
def test_what_is_the_same_is_not_written_and_what_is_too_many_goes(tmp_path: Path) -> None:
    path = tmp_path / "videos.jsonl"
    write_rows(path, listed(300))
    inodes = [part.stat().st_ino for part in parts_of(path)]
    write_rows(path, listed(300))
    assert [part.stat().st_ino for part in parts_of(path)] == inodes
    write_rows(path, listed(9))
    assert list(Rows(path)) == listed(9)
    assert len(list(tmp_path.iterdir())) < 3


@pytest.mark.usefixtures("short")
def test_a_bad_line_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "videos.jsonl"
    write_rows(path, rows(300))
    (tmp_path / "videos.2.jsonl").write_text('{"video_id": "a"}\n[1]\n')
    with pytest.raises(FvlmError, match=r"videos\.2\.jsonl:2: expected a JSON object"):
        list(Rows(path))
    assert [row["video_id"] for row in Rows(path, holding='"a"')] == ["a"]
    with pytest.raises(FvlmError, match="dvc repro"):
        list(Rows(tmp_path / "missing.jsonl"))
