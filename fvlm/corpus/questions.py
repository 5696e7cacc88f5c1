"""Questions about videos with their answers, as JSON lines; no shard ever holds them.

    {"question": "What falls?", "answer": "an apple", "options": ["an apple", "a leaf"]}

They stand beside a video in NAME.questions.jsonl, as `questions` in a row of a list, or in one
file, collect.questions, whose rows name their `video` by its id. `options`: the answer is one of
them. `rejected`: a worse answer. `start`, `end`: what the question is about, in seconds from the
file's first frame. `kind`: what accuracies are told by. `id`: else the video's with a number.
The demo brings its own: demo_questions.jsonl.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, model_validator

from fvlm.core.document import Document
from fvlm.core.errors import SourceError
from fvlm.corpus.listed import ListedVideo
from fvlm.corpus.tables import read_table

SUFFIX = ".questions.jsonl"  # beside NAME.mp4: NAME.questions.jsonl
MAX_FAULTS = 20  # shown of many
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Seconds = Annotated[float, Field(ge=0)]


class Question(Document):
    """A question as it is written; see above."""

    question: Words
    answer: Words
    options: list[Words] = Field(default_factory=list)
    rejected: str = ""
    start: Seconds | None = None
    end: Seconds | None = None
    kind: str = ""
    id: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> "Question":
        if self.options and self.answer not in self.options:
            raise ValueError(f"the answer {self.answer!r} is none of the options")
        if len(set(self.options)) != len(self.options) or len(self.options) == 1:
            raise ValueError("options must be two or more that differ")
        if self.rejected.strip() == self.answer:
            raise ValueError("`rejected` is the answer itself")
        if self.end is not None and self.end < (self.start or 0):
            raise ValueError(f"`end` ({self.end:g}) lies before `start` ({self.start or 0:g})")
        return self


def list_questions(videos: Sequence[ListedVideo], file: Path | None) -> list[dict[str, Any]]:
    """All questions with the `video_id` that they are about, in the order of `videos`.

    file: collect.questions; those about a video that is not listed stand last. Raises SourceError
    for all faulty ones together, each with its file and line, and for an id that stands twice.
    """
    faults, rows, places = list[str](), list[dict[str, Any]](), dict[tuple[str, str], str]()

    def add(video_id: str, found: Iterable[tuple[str, Any]]) -> None:
        for number, (place, value) in enumerate(found, start=1):
            try:
                question = parse_question(value)
            except SourceError as error:
                faults.append(f"{place}: {error}")
                continue
            name = question.id or f"{video_id}#{number}"
            if (first := places.setdefault((video_id, name), place)) is not place:
                faults.append(f"{place}: the id {name!r} stands in {first} already")
            rows.append({"video_id": video_id} | question.model_dump() | {"id": name})

    asked = _by_video(file, faults) if file else {}
    for video in videos:
        add(video.video_id, [*_beside(video, faults), *asked.pop(video.video_id, ())])
    for video_id in sorted(asked):
        add(video_id, asked[video_id])
    if faults:
        more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        raise SourceError("questions are invalid:\n  " + "\n  ".join(faults[:MAX_FAULTS] + more))
    return rows


def _beside(video: ListedVideo, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """Those of the video's row, then those of the file beside it."""
    yield from ((f"{video.video_id}, question {n}", q) for n, q in enumerate(video.questions, 1))
    path = os.path.splitext(video.path)[0] + SUFFIX  # noqa: PTH122 - a Path a video costs more
    if os.path.isfile(path):  # noqa: PTH113 - likewise
        yield from _lines(Path(path), faults)


def _by_video(file: Path, faults: list[str]) -> dict[str, list[tuple[str, Any]]]:
    """Rows of the one file, by the video that each names."""
    if not file.is_file() or file.suffix != ".jsonl":
        raise SourceError(f"collect.questions: {file} is no file of JSON lines (.jsonl)")
    found = defaultdict[str, list[tuple[str, Any]]](list)
    for place, row in _lines(file, faults):
        row = dict(row)
        video_id = row.pop("video", None)
        if isinstance(video_id, str) and video_id:
            found[video_id].append((place, row))
        else:
            faults.append(f"{place}: expected a `video`, the id of one, got {video_id!r}")
    return found


def _lines(path: Path, faults: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        yield from ((f"{path}:{line}", row) for line, row in read_table(path).rows())
    except (OSError, SourceError) as error:
        faults.append(str(error))


def parse_question(value: Any) -> Question:
    """One question; raises SourceError with all that is wrong with it."""
    try:
        return Question.model_validate(value)
    except ValidationError as error:
        told = (
            ".".join(map(str, fault["loc"])) + ": " * bool(fault["loc"])
            + fault["msg"].removeprefix("Value error, ")
            for fault in error.errors()
        )  # fmt: skip
        raise SourceError("; ".join(told)) from None
