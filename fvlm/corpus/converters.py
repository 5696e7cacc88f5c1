"""Questions of published data sets, row by row, in the form of `questions.py`.

Each converter takes one row as its data set has it and gives questions of one video: `video` (its
id, which the user's own list must have), `question`, `answer`, and where there are any `options`,
`rejected`, `kind`, `id`. SourceError names the key of a row that is of another form.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fvlm.core.errors import SourceError
from fvlm.corpus.questions import parse_question

Row = Mapping[str, Any]
Converter = Callable[[Row], Iterator[dict[str, Any]]]
LETTER = re.compile(r"\s*\(?([A-Z])[.:)]\s*")  # in front of an option of Video-MME
PLACEHOLDER = re.compile(r"<(?:video|image)>")  # where a LLaVA conversation has its pixels


def from_mvbench(row: Row) -> Iterator[dict[str, Any]]:
    """{"video", "question", "candidates", "answer"}, of some tasks also "start", "end"."""
    options, answer = _texts(row, "candidates"), _text(row, "answer")
    if answer not in options:
        raise SourceError(f"`answer` must be one of `candidates`, got {answer!r}")
    yield _question(
        _text(row, "video"),
        question=_text(row, "question"),
        answer=answer,
        options=options,
        **_known(row, kind=("task_type", "task"), id=("question_id", "id")),
        **{name: row[name] for name in ("start", "end") if row.get(name) is not None},
    )


def from_videomme(row: Row) -> Iterator[dict[str, Any]]:
    """{"videoID" or "video_id", "question", "options": ["A. ..", ..], "answer": "A", ..}."""
    lettered = [_lettered(option) for option in _texts(row, "options")]
    options = dict(lettered)
    if len(options) < len(lettered):
        raise SourceError(f"`options` must have letters that differ, got {row['options']!r}")
    letter = _text(row, "answer").strip("().: ")
    if letter not in options:
        raise SourceError(f"`answer` must be one of {', '.join(options)}, got {row['answer']!r}")
    yield _question(
        _text(row, "videoID", "video_id", "video"),
        question=_text(row, "question"),
        answer=options[letter],
        options=list(options.values()),
        **_known(row, kind=("task_type",), id=("question_id",)),
    )


def from_llava(row: Row) -> Iterator[dict[str, Any]]:
    """{"id", "video", "conversations": [{"from": "human", "value"}, {"from": "gpt", ..}, ..]}.

    Each pair of turns is a question of its own; what was said before is not told.
    """
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise SourceError(f"`conversations` must be pairs of turns, got {turns!r}")
    video, name = _text(row, "video"), _known(row, id=("id",)).get("id")
    for number, place in enumerate(range(0, len(turns), 2), start=1):
        asked, said = (
            _turn(turns[n], n, who)
            for n, who in ((place, ("human", "user")), (place + 1, ("gpt", "assistant")))
        )
        words = PLACEHOLDER.sub("", asked).strip()
        known = {"id": f"{name}-{number}"} if name else {}
        yield _question(video, question=words, answer=said, **known)


def from_preferences(row: Row) -> Iterator[dict[str, Any]]:
    """{"video", "prompt" or "question", "chosen", "rejected"}."""
    yield _question(
        _text(row, "video"),
        question=PLACEHOLDER.sub("", _text(row, "prompt", "question")).strip(),
        answer=_text(row, "chosen"),
        rejected=_text(row, "rejected"),
        **_known(row, id=("id", "question_id")),
    )


CONVERTERS: dict[str, Converter] = {
    "mvbench": from_mvbench,
    "videomme": from_videomme,
    "llava": from_llava,
    "preferences": from_preferences,
}


def _question(video: str, **values: Any) -> dict[str, Any]:
    """As it is written; raises SourceError where `collect` would refuse it."""
    parse_question(values)
    return {"video": video} | values


def _text(row: Row, *keys: str) -> str:
    """That of the first key that is there."""
    key = next((key for key in keys if key in row), keys[0])
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise SourceError(f"`{key}` must be text, got {value!r}")
    return value.strip()


def _texts(row: Row, key: str) -> list[str]:
    values = row.get(key)
    if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
        raise SourceError(f"`{key}` must be a list of texts, got {values!r}")
    return [value.strip() for value in values]


def _known(row: Row, **keys: tuple[str, ...]) -> dict[str, str]:
    """What the row says besides; an id may be a number."""
    found = {
        name: next((row[key] for key in known if row.get(key) not in (None, "")), None)
        for name, known in keys.items()
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _lettered(option: str) -> tuple[str, str]:
    """The letter in front of an option, and the rest: the letters are not in the prompt."""
    match = LETTER.match(option)
    if not match:
        raise SourceError(f"`options` must begin with letters, such as 'A. a dog', got {option!r}")
    return match[1], option[match.end() :]


def _turn(turn: Any, place: int, who: tuple[str, str]) -> str:
    if not isinstance(turn, Mapping) or turn.get("from") not in who:
        raise SourceError(f"`conversations[{place}]` must be a turn of {who[0]!r}, got {turn!r}")
    try:
        return _text(turn, "value")
    except SourceError as error:
        raise SourceError(f"`conversations[{place}]`: {error}") from None
