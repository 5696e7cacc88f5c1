"""One row of a list as a video: the file that it names, or a part of it."""

import json
import math
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvlm.core.errors import SourceError
from fvlm.core.io import file_stamp
from fvlm.corpus.captions import RegularFiles, sidecar_caption
from fvlm.corpus.tables import Row

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class ListedVideo:
    """One row of data/collect/videos.jsonl.

    video_id: path relative to the source folder or the list's, or what the list says; bytes that
    are not UTF-8 are surrogate-escaped. path: absolute. size: bytes. stamp: of the file as it was
    listed (`file_stamp`), so that later stages run when it changes. caption: empty when there is
    none. group: clips of one group are not independent, and are split together. start, end: seconds
    from the first frame, of a part of the file; None: its beginning, its end. questions: of its row
    of a list, or the demo's, not checked yet.
    """

    video_id: str
    path: str
    size: int
    stamp: list[int]
    caption: str
    group: str = ""
    start: float | None = None
    end: float | None = None
    questions: Sequence[Any] = ()

    def row(self) -> dict[str, Any]:
        """Its line of the listing; questions have a table of their own."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "questions"}


def parse_row(
    folder: Path, row: Row, group_of: Callable[[str], str], root: Path | None = None
) -> ListedVideo:
    """The video of a row, whose `path` is relative to `folder`; its id is relative to `root`.

    Without a root the id is the path as it stands there; a part of a file adds its times as a media
    fragment does (`film.mp4#t=10,20`).
    """
    name, caption = row.get("path"), row.get("caption")
    if not isinstance(name, str) or not name:
        raise SourceError(f"expected a `path`, got {name!r}")
    if None in row:  # of the csv module
        raise SourceError("more fields than the header has; one with a separator needs quotes")
    for column in ("caption", "video_id", "group"):
        if not isinstance(row.get(column, ""), str | None):
            raise SourceError(f"expected text as `{column}`, got {row[column]!r}")
    if URL.match(name):
        raise SourceError(f"{name!r} is a URL: download it first")
    path = os.path.abspath(folder / name)  # noqa: PTH100 - links stay as they are
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path a row costs more
    except (OSError, ValueError) as error:  # ValueError: a NUL, or no name that the disk can hold
        raise SourceError(f"{name!r} cannot be found: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{name!r} is not a regular file")
    caption = (caption or "").strip() or sidecar_caption(path, RegularFiles(path))
    # An absolute path says where a list lies, and belongs into no file name.
    inside = root or (folder if os.path.isabs(name) else None)  # noqa: PTH117 - as above
    own = os.path.relpath(path, inside) if inside else name
    start, end = (_seconds(row, column) for column in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise SourceError(f"expected `end` ({end:g}) behind `start` ({start or 0:g})")
    part = "" if (start, end) == (None, None) else f"#t={_digits(start)},{_digits(end)}"
    return ListedVideo(
        video_id=row.get("video_id") or own + part.removesuffix(","),
        path=path,
        size=status.st_size,
        stamp=file_stamp(status),
        caption=caption,
        group=row.get("group") or (group_of(own) if part else ""),
        start=start,
        end=end,
        questions=questions_of_row(row.get("questions")),
    )


def questions_of_row(value: Any) -> Sequence[Any]:
    """The column `questions` of a list: objects, or text that is a JSON array of them."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise SourceError(f"`questions` is no JSON: {error}") from None
    if not value:
        return ()
    if not isinstance(value, list):
        raise SourceError(f"expected an array as `questions`, got {value!r}")
    return value


def _seconds(row: Row, column: str) -> float | None:
    """The number in a column; None where there is none."""
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        seconds = float(value) if isinstance(value, (str, int, float)) else math.nan
    except ValueError:
        seconds = math.nan
    if isinstance(value, bool) or not 0 <= seconds < math.inf:
        raise SourceError(f"expected seconds, 0 or more, as `{column}`, got {value!r}")
    return seconds


def _digits(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.15g}"
