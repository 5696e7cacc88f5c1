"""Rows of published data sets become questions that `collect` accepts; bad ones name their key."""

from typing import Any

import pytest

from fvlm.core.errors import SourceError
from fvlm.corpus.converters import CONVERTERS
from fvlm.corpus.questions import Question

MVBENCH = {
    "video": "ZS9XR.mp4",
    "question": "What happened after the person took the food?",
    "candidates": ["Ate the medicine.", "Tidied up the blanket.", "Put down the cup."],
    "answer": "Ate the medicine.",
}
VIDEOMME = {
    "video_id": "001",
    "videoID": "fFjv93ACGo8",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "How many candles?",
    "options": ["A. 3.", "B. 12.", "(C) None of them", "D: A. Smith"],
    "answer": "B",
}
LLAVA: dict[str, Any] = {
    "id": "v_1",
    "video": "a/b.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nWhat is it?"},
        {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "What does it do?\n<image>"},
        {"from": "gpt", "value": " It runs. "},
    ],
}
PREFERENCE = {"video": "c.mp4", "prompt": "<video>\nWhere?", "chosen": "Here.", "rejected": "No."}
GIVEN = {
    "mvbench": (MVBENCH, [["Ate the medicine.", "ZS9XR.mp4"]]),
    "videomme": (VIDEOMME, [["12.", "fFjv93ACGo8"]]),
    "llava": (LLAVA, [["A dog.", "a/b.mp4"], ["It runs.", "a/b.mp4"]]),
    "preferences": (PREFERENCE, [["Here.", "c.mp4"]]),
}


def convert(name: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    return list(CONVERTERS[name](row))


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_format_becomes_questions_that_are_accepted(name: str) -> None:
    row, expected = GIVEN[name]
    found = convert(name, row)
    assert [[one["answer"], one["video"]] for one in found] == expected
    for one in found:
        Question.model_validate({key: one[key] for key in one.keys() - {"video"}})


def test_the_answer_of_mvbench_is_one_of_its_candidates_at_its_time() -> None:
    (found,) = convert("mvbench", MVBENCH | {"start": 0, "end": 5.5, "task_type": "sequence"})
    assert found["options"] == MVBENCH["candidates"]
    assert (found["start"], found["end"], found["kind"]) == (0, 5.5, "sequence")
    assert "id" not in found  # `collect` numbers them


def test_letters_of_video_mme_are_no_part_of_its_options() -> None:
    (found,) = convert("videomme", VIDEOMME)
    assert found["options"] == ["3.", "12.", "None of them", "A. Smith"]
    assert (found["id"], found["kind"]) == ("001-1", "Counting Problem")
    (other,) = convert("videomme", {k: VIDEOMME[k] for k in VIDEOMME if k != "videoID"})
    assert other["video"] == "001"
    (last,) = convert("videomme", VIDEOMME | {"answer": "(D)"})
    assert last["answer"] == "A. Smith"


def test_a_conversation_is_a_question_for_each_pair_without_placeholders() -> None:
    found = convert("llava", LLAVA)
    assert [(one["id"], one["question"]) for one in found] == [
        ("v_1-1", "What is it?"),
        ("v_1-2", "What does it do?"),
    ]
    nameless = {key: LLAVA[key] for key in LLAVA if key != "id"}
    assert all("id" not in one for one in convert("llava", nameless))
    (number, _) = convert("llava", LLAVA | {"id": 7})
    assert number["id"] == "7-1"


def test_a_preference_keeps_both_answers() -> None:
    (found,) = convert("preferences", PREFERENCE)
    assert found == {
        "video": "c.mp4",
        "question": "Where?",
        "answer": "Here.",
        "rejected": "No.",
    }
    named = PREFERENCE | {"question": "Where?", "question_id": 3}
    del named["prompt"]
    (same,) = convert("preferences", named)
    assert same == found | {"id": "3"}


TURN = {"from": "gpt", "value": "?"}
BAD: list[tuple[str, dict[str, Any], str]] = [
    *((name, row | {"video": 3}, "`video` must be text, got 3")
      for name, (row, _) in GIVEN.items() if name != "videomme"),
    ("mvbench", {"video": "a.mp4"}, "`candidates` must be a list of texts, got None"),
    ("mvbench", MVBENCH | {"candidates": ["a", 3]}, "`candidates` must be a list of texts"),
    ("mvbench", MVBENCH | {"answer": "Slept."}, "`answer` must be one of `candidates`, got 'Slep"),
    ("mvbench", MVBENCH | {"question": " "}, "`question` must be text, got ' '"),
    ("mvbench", MVBENCH | {"start": 3, "end": 2}, "`end` (2) lies before `start` (3)"),
    ("mvbench", MVBENCH | {"start": "a"}, "start: Input should be a valid number"),
    ("videomme", VIDEOMME | {"videoID": ""}, "`videoID` must be text, got ''"),
    ("videomme", VIDEOMME | {"answer": "E"}, "`answer` must be one of A, B, C, D, got 'E'"),
    ("videomme", VIDEOMME | {"options": ["3", "4"]}, "`options` must begin with letters, such as"),
    ("videomme", VIDEOMME | {"options": ["A. 3", "A. 4"]}, "`options` must have letters that diff"),
    ("llava", LLAVA | {"conversations": []}, "`conversations` must be pairs of turns, got []"),
    ("llava", LLAVA | {"conversations": [TURN]}, "`conversations` must be pairs of turns"),
    ("llava", LLAVA | {"conversations": [TURN, TURN]}, "`conversations[0]` must be a turn of 'hum"),
    ("llava", LLAVA | {"conversations": [LLAVA["conversations"][0], {"from": "gpt"}]},
     "`conversations[1]`: `value` must be text, got None"),
    ("llava", LLAVA | {"conversations": [{"from": "human", "value": "<video>"}, TURN]},
     "question: String should have at least 1 character"),
    ("preferences", PREFERENCE | {"chosen": None}, "`chosen` must be text, got None"),
    ("preferences", PREFERENCE | {"rejected": "Here."}, "`rejected` is the answer itself"),
    ("preferences", {"video": "c.mp4"}, "`prompt` must be text, got None"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "message"), BAD)
def test_a_bad_row_names_its_key(name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError) as caught:
        convert(name, row)
    assert str(caught.value).startswith(message)
