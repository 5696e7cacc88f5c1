"""Questions from every place, and every fault of them told at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.errors import SourceError
from fvlm.corpus.listing import CollectParams, list_videos
from fvlm.corpus.questions import list_questions

ASKED = {"question": "What falls?", "answer": "an apple"}


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


def questions(source: Path, file: Path | None = None) -> list[dict[str, Any]]:
    videos, _ = list_videos(CollectParams(source=str(source), control_clips=2, control_seed=0))
    return list_questions(videos, file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(b"not opened")
    return tmp_path / "videos"


def test_questions_stand_beside_a_video_in_a_list_and_in_one_file(folder: Path) -> None:
    """In the order of the videos; those about no listed video come last, and are not lost."""
    write_lines(folder / "b.questions.jsonl", ASKED, ASKED | {"id": "second", "kind": "fruit"})
    listing = write_lines(
        folder / "list.jsonl",
        {"path": "b.mp4", "questions": [ASKED | {"question": "Of the row?"}]},
        {"path": "a.mp4"},
        {"path": "c.mp4", "questions": []},
    )
    options = {"options": ["an apple", "a leaf"], "rejected": "a leaf", "start": 1, "end": 2.5}
    file = write_lines(
        folder / "all.jsonl",
        {"video": "a.mp4"} | ASKED | options,
        {"video": "nowhere.mp4"} | ASKED,
    )
    found = questions(listing, file)
    assert [(row["video_id"], row["id"], row["question"]) for row in found] == [
        ("a.mp4", "a.mp4#1", "What falls?"),
        ("b.mp4", "b.mp4#1", "Of the row?"),
        ("b.mp4", "b.mp4#2", "What falls?"),
        ("b.mp4", "second", "What falls?"),
        ("nowhere.mp4", "nowhere.mp4#1", "What falls?"),
    ]
    assert {name: found[0][name] for name in options} == options
    assert found[3]["kind"] == "fruit"
    assert found[1]["options"] == []
    assert found[1]["start"] is None


def test_a_column_of_a_csv_list_holds_json(folder: Path) -> None:
    (folder / "list.csv").write_text(f"path\tquestions\na.mp4\t{json.dumps([ASKED])}\nb.mp4\t\n")
    (folder / "list.csv").rename(folder / "list.tsv")
    (row,) = questions(folder / "list.tsv")
    assert (row["video_id"], row["answer"]) == ("a.mp4", "an apple")


@pytest.mark.parametrize("column", ['{"a": 1}', "[1", "3"])
def test_a_column_without_an_array_is_a_fault_of_its_row(folder: Path, column: str) -> None:
    (folder / "list.tsv").write_text(f"path\tquestions\na.mp4\t{column}\n")
    with pytest.raises(SourceError, match=r"list\.tsv:2: .*questions"):
        questions(folder / "list.tsv")


FAULTS = [
    ({"question": "What?"}, "answer: Field required"),
    (ASKED | {"answer": " "}, "answer: String should have at least 1 character"),
    (ASKED | {"options": ["a", "b"]}, "the answer 'an apple' is none of the options"),
    (ASKED | {"options": ["an apple"]}, "options must be two or more that differ"),
    (ASKED | {"options": ["an apple", "an apple "]}, "options must be two or more that differ"),
    (ASKED | {"rejected": "an apple "}, "`rejected` is the answer itself"),
    (ASKED | {"start": 3, "end": 2}, "`end` (2) lies before `start` (3)"),
    (ASKED | {"start": -1}, "start: Input should be greater than or equal to 0"),
    (ASKED | {"anwser": "x"}, "anwser: Extra inputs are not permitted"),
]


def test_all_faults_are_told_together_with_their_lines(folder: Path) -> None:
    beside = write_lines(folder / "a.questions.jsonl", *(row for row, _ in FAULTS))
    file = write_lines(
        folder / "all.jsonl",
        ASKED,
        {"video": "c.mp4", "id": "x"} | ASKED,
        {"video": "c.mp4", "id": "x"} | ASKED,
    )
    (folder / "b.questions.jsonl").write_text("{")
    with pytest.raises(SourceError) as caught:
        questions(folder, file)
    lines = str(caught.value).splitlines()[1:]
    assert lines[0].startswith(f"  {file}:1: expected a `video`, the id of one, got None")
    for number, (line, (_, fault)) in enumerate(zip(lines[1:], FAULTS, strict=False), start=1):
        assert line.startswith(f"  {beside}:{number}: {fault}"), line
    assert f"{folder / 'b.questions.jsonl'}:1: not valid JSON" in lines[-2]
    assert lines[-1] == f"  {file}:3: the id 'x' stands in {file}:2 already"
    assert len(lines) == len(FAULTS) + 3


def test_a_file_that_is_none_is_named(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"collect\.questions: .*nothing\.jsonl is no file"):
        questions(folder, folder / "nothing.jsonl")
