"""Lists of videos, whatever their kind, as rows with the columns `path`, `caption` and others.

    .csv    a header, then rows; separated by `,`, or by `;` where the header has one and no `,`
    .tsv    likewise, separated by tabs
    .jsonl  an object a line
    .txt    a path a line

All are UTF-8, with or without a byte order mark.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from fvlm.core.errors import SourceError

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
# The usual names of columns, in any case; the first one that is there is taken.
PATH_COLUMNS = ("path", "file_name", "filename", "file_path", "video_path", "file", "video")
CAPTION_COLUMNS = ("caption", "text", "description")

Row = dict[str, Any]


Numbered = tuple[int, Row]  # a row and the number of its line


@dataclass(frozen=True)
class Table:
    """A list; `columns`: all names, in their order. `rows()` reads it from the disk, row by row."""

    path: Path
    columns: list[str]
    rows: Callable[[], Iterator[Numbered]]

    def find(self, wanted: str, usual: Sequence[str]) -> str | None:
        """The column `wanted`, or where that is empty the first usual one.

        Raises SourceError when `wanted` is not there.
        """
        if wanted and wanted not in self.columns and not self.is_empty:
            raise SourceError(f"{self.path} has no column {wanted!r}, only {self._in_words()}")
        named = {column.strip().lower(): column for column in reversed(self.columns)}
        return wanted or next((named[name] for name in usual if name in named), None)

    @property
    def is_empty(self) -> bool:
        """Whether there is no row."""
        return next(self.rows(), None) is None

    def select(self, path_column: str, caption_column: str) -> Iterator[Numbered]:
        """The rows with the chosen columns, or usual ones where empty, as `path` and `caption`.

        Raises SourceError without a column of paths. Says which columns it takes.
        """
        paths = self.find(path_column, PATH_COLUMNS)
        captions = self.find(caption_column, CAPTION_COLUMNS)
        if paths is None:
            if self.is_empty:
                return iter(())
            raise SourceError(
                f"{self.path} has no column of paths, called {', '.join(PATH_COLUMNS[:-1])} or "
                f"{PATH_COLUMNS[-1]}, or as collect.path_column says; only {self._in_words()}"
            )
        if paths != "path" or captions not in ("caption", None):
            told = f", captions from `{captions}`" if captions else ""
            print(f"collect: {self.path.name}: paths from `{paths}`{told}")

        def select(row: Row) -> Row:
            caption = row.get(captions) if captions else None
            return row | {"path": row.get(paths), "caption": caption}

        return ((line, select(row)) for line, row in self.rows())

    def _in_words(self) -> str:
        return ", ".join(map(repr, self.columns)) or "empty rows"


def read_table(path: Path) -> Table:
    """The list at `path`; its suffix, one of LIST_SUFFIXES, says how it is written.

    Raises SourceError, naming the line, when it is written in another way; so do its rows.
    """
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        with _opened(path) as file:
            header = file.readline()
            separator = "\t" if kind == ".tsv" else _separator(header)
        with _opened(path) as file:
            columns = list(csv.DictReader(file, delimiter=separator).fieldnames or ())
        return Table(path, columns, lambda: _csv_rows(path, separator))
    if kind == ".txt":
        return Table(path, ["path"], lambda: _lines(path))
    columns = list(dict.fromkeys(name for _, row in _objects(path) for name in row))
    return Table(path, columns, lambda: _objects(path))


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not in UTF-8: {error}") from None


def _separator(header: str) -> str:
    return ";" if ";" in header and "," not in header else ","


def _csv_rows(path: Path, separator: str) -> Iterator[Numbered]:
    with _opened(path) as file:
        reader = csv.DictReader(file, delimiter=separator)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise SourceError(f"{path}:{reader.line_num}: {error}") from None


def _lines(path: Path) -> Iterator[Numbered]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise SourceError(f"{path} is not in UTF-8: {error}") from None
            if text := text.removesuffix("\n").rstrip("\r"):
                yield number, {"path": text}


def _objects(path: Path) -> Iterator[Numbered]:
    for number, row in _lines(path):
        if row["path"].strip():
            yield number, _parse_object(path, number, row["path"])


def _parse_object(path: Path, line: int, text: str) -> Row:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}:{line}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise SourceError(f"{path}:{line}: expected an object with `path`, got {row!r}")
    return row
