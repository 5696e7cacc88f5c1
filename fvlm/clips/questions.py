"""Questions about clips, read with the clips: each row is one question about one clip.

data/questions/questions.jsonl (of many also questions.1.jsonl and so on) has a line for each
question and clip that it is asked of: {"key", "video_id", "question", "answer", "options", ..}.
Shards hold no text: another question makes no shard anew.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvlm.clips.batch import Batch
from fvlm.clips.reader import ClipReader
from fvlm.clips.tokenizer import AnswerTokenizer
from fvlm.core.errors import FvlmError, ShardError
from fvlm.core.io import hash_json, read_line
from fvlm.core.rows import Rows, parts_of

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class QuestionTable:
    """Questions about clips; memory holds of each one where it stands, and its clip.

    clips int64 [n], ascending: the row of the clip that a question is asked of; digest: hex sha256
    of all of them; too_long: how many were left out.
    """

    paths: list[Path]
    clips: Indices
    parts: Indices
    places: Indices
    ids: list[str]
    digest: str
    too_long: int

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """A question as `filter` wrote it."""
        return read_line(self.paths[self.parts[row]], int(self.places[row]))


def read_questions(
    first: Path,
    keys: Sequence[str],
    *,
    wanted: Callable[[dict[str, Any]], bool] = lambda _: True,
    fits: Callable[[dict[str, Any]], bool] = lambda _: True,
) -> QuestionTable:
    """The questions about the clips `keys` that are `wanted` and not too long (`fits`).

    Raises FvlmError when there is no table.
    """
    if not first.exists():
        raise FvlmError(f"{first} not found; run `dvc repro filter` to make it")
    rows = {key: row for row, key in enumerate(keys)}
    found, too_long = list[tuple[int, int, int, str, str]](), 0
    for part, place, line in Rows(first).with_places():
        if (row := rows.get(line["key"])) is not None and wanted(line):
            if fits(line):
                found.append((row, part, place, line["id"], hash_json(line)))
            else:
                too_long += 1
    found.sort(key=lambda question: question[0])  # stable: those of a clip as they stand
    clips, parts, places = (
        np.asarray([question[n] for question in found], np.int64) for n in range(3)
    )
    digest = hashlib.sha256("".join(question[4] for question in found).encode()).hexdigest()
    ids = [question[3] for question in found]
    return QuestionTable(list(parts_of(first)), clips, parts, places, ids, digest, too_long)


class AskedClips:
    """Clips with a question each, by row; to be read like a ClipReader.

    keys: that of the clip and the id of the question.
    """

    def __init__(
        self, clips: ClipReader, table: QuestionTable, tokenizer: AnswerTokenizer, *, rejected: bool
    ) -> None:
        self.keys = [
            f"{clips.keys[row]} {name}" for row, name in zip(table.clips, table.ids, strict=True)
        ]
        self.stored, self.check_frames = clips.stored, clips.check_frames
        self.clips, self.table = clips, table
        self._tokenizer, self._rejected = tokenizer, rejected

    def __len__(self) -> int:
        return len(self.table)

    def all_metadata(self) -> Iterator[dict[str, Any]]:
        """What is known of the clip of each row besides its pixels."""
        counts = np.bincount(self.table.clips, minlength=len(self.clips))
        for count, metadata in zip(counts, self.clips.all_metadata(), strict=True):
            yield from [metadata] * int(count)

    def read(self, rows: Sequence[int] | Indices, frames: Indices) -> Batch:
        """Clips and questions of `rows` [B]; frames int64 [B,T] or the same [T] for each."""
        asked = [self.table[int(row)] for row in rows]
        batch = self.clips.read(self.table.clips[np.asarray(rows)], frames)
        questions = [question["question"] for question in asked]
        answers = [question["answer"] for question in asked]
        rejected = [question["rejected"] for question in asked] if self._rejected else None
        return replace(
            batch,
            keys=[self.keys[int(row)] for row in rows],
            captions=self._tokenizer(questions, answers),
            rejected=self._tokenizer(questions, rejected) if rejected else None,
        )


Reader = ClipReader | AskedClips


def ask(
    clips: ClipReader,
    questions: Path,
    tokenizer: AnswerTokenizer,
    *,
    max_tokens: int = 0,
    rejected: bool = False,
) -> AskedClips:
    """The clips with their questions; too long ones are left out, and counted in `table.too_long`.

    rejected: only those with a rejected answer, which is read too. Raises ShardError where there is
    none.
    """

    def fits(line: dict[str, Any]) -> bool:
        texts = (line["answer"], *([line["rejected"]] if rejected else []))
        return not max_tokens or all(
            tokenizer.length(line["question"], text) <= max_tokens for text in texts
        )

    def wanted(line: dict[str, Any]) -> bool:
        return bool(line["rejected"].strip()) or not rejected

    table = read_questions(questions, clips.keys, wanted=wanted, fits=fits)
    if not len(table):
        what = "question with a rejected answer" if rejected else "question"
        raise ShardError(
            f"{questions} has no {what} about these {len(clips)} clips"
            + f" ({table.too_long} are too long)" * bool(table.too_long)
            + ": give collect.source some, or collect.questions (docs/videos.md)"
        )
    return AskedClips(clips, table, tokenizer, rejected=rejected)
