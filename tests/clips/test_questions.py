"""Questions are joined with clips by key; another question makes no shard anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fvlm.clips.questions import ask, read_questions
from fvlm.clips.reader import ClipReader, open_clips
from fvlm.core.errors import FvlmError, ShardError
from fvlm.core.rows import write_rows
from tests.clips.test_reader import write_folder
from tests.questions import question, rows, tokenizer

Line = dict[str, Any]
LINES = [
    question("a", 0, question="left ?"),
    question("c", 0, question="right ?", rejected="the red square"),
    question("b", 0, rejected="blue"),
    question("a", 1, question="what is the red square ?", answer="the blue square"),
    question("elsewhere", 0),
    question("c", 1, rejected=" "),
]
FRAMES = np.array([0, 2])
Write = Callable[[list[Line]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a table of questions, and says where."""

    def make(lines: list[Line]) -> Path:
        write_rows(tmp_path / "questions.jsonl", lines)
        return tmp_path / "questions.jsonl"

    return make


@pytest.fixture
def clips(tmp_path: Path) -> ClipReader:
    """Clips a, b and c, each of another number."""
    write_folder(tmp_path / "encode", {"a": 0, "b": 1, "c": 2})
    return open_clips(tmp_path / "encode", tmp_path / "decode", split="val", input="features")


def test_the_questions_of_a_clip_stand_together_in_the_order_of_the_clips(write: Write) -> None:
    table = read_questions(write(LINES), ["c", "b", "a", "unasked"])
    assert table.clips.tolist() == [0, 0, 1, 2, 2]
    assert table.ids == ["c.mp4#0", "c.mp4#1", "b.mp4#0", "a.mp4#0", "a.mp4#1"]
    assert [table[row] for row in range(5)] == [LINES[n] for n in (1, 5, 2, 0, 3)]
    assert len(table) == 5


def test_those_that_are_not_wanted_are_left_out_and_too_long_ones_counted(write: Write) -> None:
    path = write(LINES)

    def wanted(line: Line) -> bool:
        return bool(line["key"] != "b")

    def fits(line: Line) -> bool:
        return bool(line["answer"] == "red")

    table = read_questions(path, ["a", "b", "c"], wanted=wanted, fits=fits)
    assert table.ids == ["a.mp4#0", "c.mp4#0", "c.mp4#1"]
    assert table.too_long == 1
    assert read_questions(path, ["b"], fits=lambda _: False).too_long == 1


def test_the_digest_is_that_of_the_clips_questions_and_every_word(write: Write) -> None:
    def digest(lines: list[Line], keys: str = "ab") -> str:
        return read_questions(write(lines), list(keys)).digest

    same = digest(LINES)
    assert digest(LINES[:1] + LINES[2:4]) == same
    assert digest([*LINES[:4], LINES[4] | {"question": "other ?"}, *LINES[5:]]) == same
    assert digest(list(reversed(LINES))) != same  # of one clip they stand in another order
    assert digest(LINES, "a") != same
    for field, other in (("question", "left"), ("answer", "blue"), ("rejected", "blue")):
        assert digest([LINES[0] | {field: other}, *LINES[1:]]) != same, field
    assert digest([LINES[0] | {"options": ["blue", "red"]}, *LINES[1:]]) != same


def test_of_many_rows_in_several_files(write: Write, tmp_path: Path) -> None:
    path = write([question(f"{number}", answer=f"{number}") for number in range(12_000)])
    assert (tmp_path / "questions.1.jsonl").exists()
    keys = [f"{number}" for number in reversed(range(12_000))]
    table = read_questions(path, keys)
    assert [table[row]["answer"] for row in (0, 7, 11_999)] == ["11999", "11992", "0"]


def test_no_table_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FvlmError, match=r"questions.jsonl not found; run `dvc repro filter`"):
        read_questions(tmp_path / "questions.jsonl", ["a"])


def test_a_row_is_its_clip_with_its_question(write: Write, clips: ClipReader) -> None:
    words = tokenizer("before")
    asked = ask(clips, write(LINES), words, rejected=True)
    assert asked.keys == ["b b.mp4#0", "c c.mp4#0"]  # those with a rejected answer
    assert (len(asked), asked.stored) == (2, clips.stored)
    batch, plain = asked.read([1, 0], FRAMES), clips.read([2, 1], FRAMES)
    assert batch.keys == ["c c.mp4#0", "b b.mp4#0"]
    assert torch.equal(batch.inputs, plain.inputs)
    assert torch.equal(batch.latents, plain.latents)
    said = ["right ?", "what is there ?"]
    for found, answers in (
        (batch.captions, ["red", "red"]),
        (batch.rejected, ["the red square", "blue"]),
    ):
        expected = words(said, answers)
        assert rows(found) == rows(expected)
        assert found is not None
        assert rows(found.question) == rows(expected.question)
        assert found.counted is not None
        assert expected.counted is not None
        assert torch.equal(found.counted, expected.counted)


def test_every_question_is_a_row_of_its_clip(write: Write, clips: ClipReader) -> None:
    asked = ask(clips, write(LINES), tokenizer("before"))
    assert [clip["video_id"] for clip in asked.all_metadata()] == ["0", "0", "1", "2", "2"]
    assert asked.read([0], FRAMES).rejected is None
    for row in range(len(asked)):
        inputs = asked.read([row], np.array([[1, 3]])).inputs.flatten(2)[0, :, 0]
        assert inputs.tolist() == [10 * asked.table.clips[row] + 1, 10 * asked.table.clips[row] + 3]


@pytest.mark.parametrize("rejected", [True, False])
def test_too_long_is_more_tokens_than_wanted_of_any_answer(
    write: Write, clips: ClipReader, rejected: bool
) -> None:
    words, line = tokenizer("before"), LINES[1]
    answer = words.length(line["question"], line["answer"])
    longer = words.length(line["question"], line["rejected"])
    assert answer < longer
    for most in (answer - 1, answer, longer - 1, longer, 0):
        needed = longer if rejected else answer
        if most >= needed or most == 0:
            assert len(ask(clips, write([line]), words, max_tokens=most, rejected=rejected)) == 1
        else:
            with pytest.raises(ShardError, match=r"about these 3 clips \(1 are too long\): give c"):
                ask(clips, write([line]), words, max_tokens=most, rejected=rejected)


def test_without_questions_the_message_says_how_to_give_some(
    write: Write, clips: ClipReader
) -> None:
    with pytest.raises(ShardError, match=r"has no question about these 3 clips: give collect.so"):
        ask(clips, write(LINES[4:5]), tokenizer("before"))
    with pytest.raises(ShardError, match="has no question with a rejected answer about these 3"):
        ask(clips, write(LINES[:1]), tokenizer("before"), rejected=True)
