"""The demo's questions: each is well formed, and every clip that is cut by default has some."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.io import read_jsonl
from fvlm.core.params import Params, load_params
from fvlm.corpus import demo, listing
from fvlm.corpus.demo_clips import CLIPS
from fvlm.corpus.questions import Question, list_questions
from fvlm.video.clips import ClipSpan, DecodeParams, plan_clips
from tests.corpus.conftest import listed, touch
from tests.imports import ROOT

FPS, FRAMES = 24, 14315  # of the film
KINDS = {"action", "colour", "count", "object", "place", "state"}

STARTS = [clip.start for clip in CLIPS]
SECONDS = {
    name: (end - start) / FPS
    for name, start, end in zip(demo.clip_names(), STARTS, [*STARTS[1:], FRAMES], strict=True)
}
ROWS = read_jsonl(demo.QUESTIONS)


class Sections(Params):
    """What says how the film's scenes are cut into clips."""

    decode: DecodeParams


PARAMS = load_params(Sections, ROOT / "params.yaml").decode


def spans() -> dict[str, list[ClipSpan]]:
    """The clips of each scene by the parameters as shipped."""
    row = {"key": "", "start": None, "end": None, "cuts": None}
    return {
        name: [clip.span for clip in plan_clips(row | {"duration_seconds": seconds}, PARAMS).clips]
        for name, seconds in SECONDS.items()
    }


def test_every_question_is_well_formed() -> None:
    for row in ROWS:
        check(row)


def check(row: dict[str, Any]) -> None:
    """Its clip is the demo's, its times lie in there, and its words are few."""
    asked = Question.model_validate({name: row[name] for name in row.keys() - {"video"}})
    assert asked.start is not None
    assert asked.end is not None
    assert asked.start < asked.end <= SECONDS[row["video"]]
    assert asked.question.endswith("?")
    assert asked.kind in KINDS
    assert 2 <= len(asked.options) <= 4
    assert all(option.isascii() and len(option.split()) <= 4 for option in asked.options)


def test_they_stand_in_the_order_of_the_film() -> None:
    assert sorted(ROWS, key=lambda row: (row["video"], row["start"], row["end"])) == ROWS


def test_every_clip_has_three_at_least_and_none_twice() -> None:
    asked = defaultdict[tuple[str, ClipSpan], list[str]](list)
    cut = spans()
    for row in ROWS:
        inside = [s for s in cut[row["video"]] if s[0] <= row["start"] and row["end"] <= s[1]]
        assert len(inside) == 1, row
        assert shows(inside[0], row), row
        asked[row["video"], inside[0]].append(row["question"])
    assert {name: sum(key[0] == name for key in asked) for name in cut} == {
        name: len(found) for name, found in cut.items()
    }
    assert min(map(len, asked.values())) >= 3
    assert all(len(set(questions)) == len(questions) for questions in asked.values())


def shows(span: ClipSpan, row: dict[str, Any]) -> bool:
    """Whether one of the clip's frames lies within the times of the question."""
    gap = (span[1] - span[0]) / PARAMS.num_frames
    times = (span[0] + (number + 0.5) * gap for number in range(PARAMS.num_frames))
    return any(row["start"] <= seconds <= row["end"] for seconds in times)


def test_the_place_of_an_answer_says_nothing() -> None:
    """Neither of all questions, nor of a pair of options that recurs."""
    for number in (2, 4):
        places = Counter(
            row["options"].index(row["answer"]) for row in ROWS if len(row["options"]) == number
        )
        assert max(places.values()) <= (0.4 if number == 4 else 0.55) * places.total()
    for pair in ({"left", "right"}, {"yes", "no"}, {"open", "closed"}):
        answers = Counter(row["answer"] for row in ROWS if set(row["options"]) == pair)
        assert max(answers.values()) <= 0.55 * answers.total()


def test_the_demo_asks_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of its clips stand files of no meaning; own questions come after."""
    for name in demo.clip_names():
        touch(tmp_path / "demo" / name)
    monkeypatch.setattr(listing, "demo_folder", lambda: tmp_path / "demo")
    own = tmp_path / "own.jsonl"
    own.write_text('{"video": "big-buck-bunny-24.mp4", "question": "Why?", "answer": "so"}\n')
    found = list_questions(listed("demo"), own)
    assert [row["question"] for row in found] == [*(row["question"] for row in ROWS), "Why?"]
    assert found[0]["id"] == "big-buck-bunny-01.mp4#1"
