"""`fvlm questions FORMAT FILE`: what it prints is what `collect.questions` reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from fvlm.cli import questions
from fvlm.core.errors import FvlmError, SourceError
from fvlm.corpus.listing import CollectParams, list_videos
from fvlm.corpus.questions import list_questions

ROW = {"video": "a.mp4", "question": "Où?", "candidates": ["là", "ici"], "answer": "ici"}


def write(path: Path, rows: Any) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows))
    return path


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_what_is_printed_is_read_by_collect(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [ROW, ROW | {"video": "b.mp4", "question_id": 7}, ROW | {"answer": "là"}]
    questions.main(["mvbench", str(write(tmp_path / name, rows))])
    printed = capsys.readouterr().out
    (tmp_path / "asked.jsonl").write_text(printed)
    for video in ("a.mp4", "b.mp4"):
        (tmp_path / video).write_bytes(b"")
    source = CollectParams(source=str(tmp_path), control_clips=2, control_seed=0)
    videos, _ = list_videos(source)
    found = list_questions(videos, tmp_path / "asked.jsonl")
    assert found[0]["question"] == "Où?"
    assert [(row["video_id"], row["id"], row["answer"]) for row in found] == [
        ("a.mp4", "a.mp4#1", "ici"),
        ("a.mp4", "a.mp4#2", "là"),
        ("b.mp4", "7", "ici"),
    ]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_all_faulty_rows_are_told_together_and_nothing_is_printed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ROW | {"answer": "nowhere"}
    path = write(tmp_path / name, [ROW, bad, *[{}] * 30])
    with pytest.raises(SourceError) as caught:
        questions.main(["mvbench", str(path)])
    head, first, second, *others = str(caught.value).splitlines()
    assert head == "31 rows are not of the form mvbench, such as:"
    assert first.startswith(f"  {path}:2: `answer` must be one of `candidates`")
    assert second.startswith(f"  {path}:3: `candidates` must be a list of texts")
    assert len(others) == 18
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", "video\n", "is no file of JSON"),
        ("rows.json", '{"video": "a.mp4"}', "must be an array of rows"),
        ("rows.json", "[3]", "must be an array of rows"),
        ("rows.json", "[", "is not valid JSON"),
        ("rows.jsonl", "{}\n[", r"rows\.jsonl:2: not valid JSON"),
    ],
)
def test_another_file_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FvlmError, match=message):
        questions.main(["llava", str(tmp_path / name)])
    with pytest.raises(SourceError, match=r"nothing\.json is no file of JSON"):
        questions.main(["llava", str(tmp_path / "nothing.json")])
