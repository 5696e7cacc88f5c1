"""Rows about videos as JSON lines in several files, read one at a time.

`NAME.jsonl` holds all rows of a few thousand videos; of more, those that follow stand in
`NAME.1.jsonl`, `NAME.2.jsonl` and so on. Where a file ends is decided by the ids of its own rows:
one more video changes one file of a few megabytes, or at most its neighbours, and DVC stores no
more than these anew. Files that would hold the same bytes are not written again.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fvlm.core.io import atomic_write, iterate_jsonl

FEWEST, MORE = 4096, 4096  # rows of a file at least, and on average so many more

_encode = json.JSONEncoder(allow_nan=False).encode


def write_rows(first: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, each with a `video_id`, to `first` and the files that follow it."""
    lines, number = list[bytes](), 0
    for row in rows:
        lines.append(_encode(row).encode() + b"\n")
        digest = zlib.crc32(row["video_id"].encode(errors="surrogatepass"))
        if len(lines) >= FEWEST and digest % MORE == 0:
            _write(_part(first, number), b"".join(lines))
            lines, number = [], number + 1
    if lines or number == 0:
        _write(_part(first, number), b"".join(lines))
        number += 1
    while (path := _part(first, number)).exists():  # of a longer list
        path.unlink()
        number += 1


class Rows:
    """The rows that `write_rows` wrote, as often as they are asked for; memory holds one.

    holding: only those whose line has that text. Iterating raises FvlmError with file and line
    number for a bad line, and when there is no file.
    """

    def __init__(self, first: Path, *, holding: str = "") -> None:
        self._first, self._holding = first, holding.encode()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for _, _, row in self.with_places())

    def count(self) -> int:
        """How many lines there are, whatever they hold."""
        return sum(path.read_bytes().count(b"\n") for path in parts_of(self._first))

    def with_places(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Each row with the number of its file and the bytes that stand before it there."""
        for number, path in enumerate(parts_of(self._first)):
            for place, row in iterate_jsonl(path, self._holding):
                yield number, place, row


def parts_of(first: Path) -> Iterator[Path]:
    """The files of these rows that exist; the first one in any case."""
    number, path = 0, first
    while number == 0 or path.exists():
        yield path
        number += 1
        path = _part(first, number)


def _part(first: Path, number: int) -> Path:
    return first.with_suffix(f".{number}{first.suffix}") if number else first


def _write(path: Path, content: bytes) -> None:
    if path.exists() and path.read_bytes() == content:
        return
    with atomic_write(path) as file:
        file.write(content)
