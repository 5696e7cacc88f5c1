"""Lists of videos, whatever their kind, as rows with the columns `path`, `caption` and others.

    .csv    a header, then rows; separated by `,`, or by `;` where the header has one and no `,`
    .tsv    likewise, separated by tabs
    .jsonl  an object a line
    .txt    a path a line

All are UTF-8, with or without a byte order mark.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvlm.core.errors import SourceError

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
# The usual names of columns, in any case; the first one that is there is taken.
PATH_COLUMNS = ("path", "file_name", "filename", "file_path", "video_path", "file", "video")
CAPTION_COLUMNS = ("caption", "text", "description")

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of a list by the numbers of their lines; `columns`: all names, in their order."""

    path: Path
    columns: list[str]
    rows: dict[int, Row]

    def find(self, wanted: str, usual: Sequence[str]) -> str | None:
        """The column `wanted`, or where that is empty the first usual one.

        Raises SourceError when `wanted` is not there.
        """
        if wanted and wanted not in self.columns and self.rows:
            raise SourceError(f"{self.path} has no column {wanted!r}, only {self._in_words()}")
        named = {column.strip().lower(): column for column in reversed(self.columns)}
        return wanted or next((named[name] for name in usual if name in named), None)

    def select(self, path_column: str, caption_column: str) -> dict[int, Row]:
        """The rows with the chosen columns, or usual ones where empty, as `path` and `caption`.

        Raises SourceError without a column of paths. Says which columns it takes.
        """
        paths = self.find(path_column, PATH_COLUMNS)
        captions = self.find(caption_column, CAPTION_COLUMNS)
        if paths is None:
            if not self.rows:
                return {}
            raise SourceError(
                f"{self.path} has no column of paths, called {', '.join(PATH_COLUMNS[:-1])} or "
                f"{PATH_COLUMNS[-1]}, or as collect.path_column says; only {self._in_words()}"
            )
        if paths != "path" or captions not in ("caption", None):
            told = f", captions from `{captions}`" if captions else ""
            print(f"collect: {self.path.name}: paths from `{paths}`{told}")
        return {
            line: row | {"path": row.get(paths), "caption": row.get(captions) if captions else None}
            for line, row in self.rows.items()
        }

    def _in_words(self) -> str:
        return ", ".join(map(repr, self.columns)) or "empty rows"


def read_table(path: Path) -> Table:
    """The rows of a list; its suffix, one of LIST_SUFFIXES, says how it is written.

    Raises SourceError, naming the line, when it is written in another way.
    """
    kind = path.suffix.lower()
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not in UTF-8: {error}") from None
    lines = {number: line.rstrip("\r") for number, line in enumerate(text.split("\n"), start=1)}
    if kind == ".txt":
        rows: dict[int, Row] = {line: {"path": name} for line, name in lines.items() if name}
    elif kind == ".jsonl":
        rows = {
            line: _parse_object(path, line, said) for line, said in lines.items() if said.strip()
        }
    else:
        return _parse_csv(path, text, "\t" if kind == ".tsv" else _separator(text))
    return Table(path, list(dict.fromkeys(name for row in rows.values() for name in row)), rows)


def _separator(text: str) -> str:
    header = text.partition("\n")[0]
    return ";" if ";" in header and "," not in header else ","


def _parse_csv(path: Path, text: str, separator: str) -> Table:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        rows = dict((reader.line_num, row) for row in reader)  # noqa: C402 - B035 is mistaken
    except csv.Error as error:
        raise SourceError(f"{path}:{reader.line_num}: {error}") from None
    return Table(path, list(reader.fieldnames or ()), rows)


def _parse_object(path: Path, line: int, text: str) -> Row:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}:{line}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise SourceError(f"{path}:{line}: expected an object with `path`, got {row!r}")
    return row
