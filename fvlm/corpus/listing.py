"""List the videos of `collect.source` without opening them: a stat per file, captions from text.

A folder is walked recursively. Taken are regular files with a suffix of VIDEO_SUFFIXES in any case;
hidden files and folders are left out, as are FIFOs, sockets and devices. Links are followed; a
folder that several links lead to is walked once, by its real place where that lies inside.
A list is a .csv or .jsonl file of rows with `path`, relative to the list, and optional `caption`.
A column `video_id` names a video, a column `group` the film that several videos were cut from.
A video without a caption in its row has the text of NAME.txt beside it, or "caption" of NAME.json.
"""

import csv
import json
import os
import re
import stat
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from fvlm.core.errors import SourceError
from fvlm.core.io import project_root
from fvlm.core.params import Params
from fvlm.corpus.controls import RENDERED
from fvlm.corpus.demo import demo_captions, demo_folder
from fvlm.corpus.rendered import rendered_folder

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265",
    ".hevc", ".ivf", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe",
    ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu", ".ogg", ".ogm", ".ogv", ".qt", ".rm",
    ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m",
})
# fmt: on
LIST_SUFFIXES = (".csv", ".jsonl")
CAPTION_SUFFIXES = (".txt", ".json")
MAX_CAPTION_BYTES = 2**16
MAX_FAULTS = 20  # shown of a long list


class CollectParams(Params):
    """What to list.

    source: `demo`, a control corpus (see fvlm/corpus/controls.py), a folder, or a .csv or .jsonl
    list; relative to the project's root. control_clips, control_seed: size and content of a control
    corpus. group: a regular expression on the video id whose first group, or else whose match,
    names the film that the video was cut from; empty: every video is its own group.
    """

    source: str
    group: str = ""
    control_clips: int = Field(ge=2)
    control_seed: int

    @field_validator("source")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip() or "\0" in value:
            raise ValueError(
                f"must be demo, a control corpus, a folder, or a .csv or .jsonl list, got {value!r}"
            )
        return value

    @field_validator("group")
    @classmethod
    def _is_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"must be a regular expression, got {value!r}: {error}") from None
        return value

    def group_of(self, video_id: str) -> str:
        """The group of a video whose row names none: what `group` finds in its id, or the id."""
        found = re.search(self.group, video_id) if self.group else None
        if found is None:
            return video_id
        return (found[1] if found.re.groups else found[0]) or video_id


@dataclass(frozen=True)
class ListedVideo:
    """One row of data/collect/videos.jsonl.

    video_id: path relative to the source folder or the list's, or what the list says; bytes that
    are not UTF-8 are surrogate-escaped. path: absolute. size: bytes. caption: empty when there is
    none. group: clips of one group are not independent, and are split together.
    """

    video_id: str
    path: str
    size: int
    mtime_ns: int
    caption: str
    group: str = ""


def list_videos(params: CollectParams) -> list[ListedVideo]:
    """The videos of `collect.source`, sorted by video_id.

    Raises SourceError when the source does not exist or holds no video, and for every faulty row
    and caption, all of them together.
    """
    return [
        replace(video, group=video.group or params.group_of(video.video_id))
        for video in _list_source(params)
    ]


def _list_source(params: CollectParams) -> list[ListedVideo]:
    source = params.source
    if source == "demo":
        captions = demo_captions()
        listed = _list_folder(demo_folder())
        return [replace(video, caption=captions[video.video_id]) for video in listed]
    for corpus in RENDERED:
        if source == corpus:
            clips, seed = params.control_clips, params.control_seed
            return _list_folder(rendered_folder(corpus, clips=clips, seed=seed))
    path = project_root() / Path(source).expanduser()
    if path.is_dir():
        videos = _list_folder(path)
    elif path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        videos = _list_rows(path)
    elif path.exists():
        raise _source_error(f"{path} is neither a folder nor a .csv or .jsonl list")
    else:
        raise _source_error(f"{path} does not exist")
    if not videos:
        raise _source_error(f"no videos in {path}")
    return sorted(videos, key=lambda video: video.video_id)


def _source_error(fault: str) -> SourceError:
    return SourceError(
        f"{fault}; collect.source must be demo, a folder with videos (.mp4, .mkv, .webm, .avi and "
        "the like), a .csv or .jsonl list with a `path` in every row, or a control corpus: "
        f"{', '.join(RENDERED)}"
    )


def _list_folder(root: Path) -> list[ListedVideo]:
    videos, faults = [], []
    for folder, entries in _walk(str(root)):
        names = {entry.name for entry in entries}
        for entry in entries:
            if os.path.splitext(entry.name)[1].lower() not in VIDEO_SUFFIXES:  # noqa: PTH122
                continue
            path = os.path.join(folder, entry.name)  # noqa: PTH118 - a Path a file costs more
            try:
                status, caption = entry.stat(), _sidecar_caption(path, names)
            except FileNotFoundError:
                continue  # vanished while the folder was read
            except SourceError as error:
                faults.append(str(error))
                continue
            video_id = os.path.relpath(path, root)
            videos.append(ListedVideo(video_id, path, status.st_size, status.st_mtime_ns, caption))
    _raise_faults(faults)
    return videos


def _walk(root: str) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Every folder once, with its visible regular files; real folders before linked ones."""
    visited: set[tuple[int, int]] = set()
    real, linked = [root], list[str]()
    while real or linked:
        folder = real.pop() if real else linked.pop(0)
        try:
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(f"{folder}: {error.strerror}") from None
        modes = {entry: _mode(entry) for entry in entries if not entry.name.startswith(".")}
        for entry, mode in modes.items():
            if stat.S_ISDIR(mode):
                (linked if entry.is_symlink() else real).append(entry.path)
        yield folder, [entry for entry, mode in modes.items() if stat.S_ISREG(mode)]


def _mode(entry: os.DirEntry[str]) -> int:
    """Kind of what an entry leads to; 0 for a link that leads nowhere or in a circle."""
    try:
        return entry.stat().st_mode
    except OSError:
        return 0


def _list_rows(path: Path) -> list[ListedVideo]:
    videos, faults = [], []
    line_of: dict[str, int] = {}
    line_of_id: dict[str, int] = {}
    for line, row in _READERS[path.suffix.lower()](path):
        try:
            video = _parse_row(path.parent, row)
            first = line_of.setdefault(video.path, line)
            if first != line:
                raise SourceError(f"{video.video_id!r} stands in line {first} already")
            named = line_of_id.setdefault(video.video_id, line)
            if named != line:
                raise SourceError(f"{video.video_id!r} is the id of line {named} already")
            videos.append(video)
        except SourceError as error:
            faults.append(f"{path}:{line}: {error}")
    _raise_faults(faults)
    return videos


def _parse_row(folder: Path, row: dict[str, Any]) -> ListedVideo:
    name, caption = row.get("path"), row.get("caption")
    if not isinstance(name, str) or not name:
        raise SourceError(f"expected a `path`, got {name!r}")
    for column in ("caption", "video_id", "group"):
        if not isinstance(row.get(column, ""), str | None):
            raise SourceError(f"expected text as `{column}`, got {row[column]!r}")
    path = os.path.abspath(folder / name)  # noqa: PTH100 - links stay as they are
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError) as error:  # ValueError: a NUL, or no name that the disk can hold
        raise SourceError(f"{name!r} cannot be found: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{name!r} is not a regular file")
    caption = (caption or "").strip() or _sidecar_caption(path, _RegularFiles(path))
    # An absolute path says where a list lies, and belongs into no file name.
    own = os.path.relpath(path, folder) if os.path.isabs(name) else name  # noqa: PTH117
    return ListedVideo(
        video_id=row.get("video_id") or own,
        path=path,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        caption=caption,
        group=row.get("group") or "",
    )


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if "path" not in (reader.fieldnames or []):
                raise SourceError(f"{path}:1: expected a header with `path`, optional `caption`")
            for row in reader:
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} is not CSV in UTF-8: {error}") from None


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}:{line}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise SourceError(f"{path}:{line}: expected an object with `path`, got {row!r}")
        yield line, row


_Reader = Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]
_READERS: dict[str, _Reader] = {".csv": _read_csv, ".jsonl": _read_jsonl}


class _RegularFiles(Container[object]):
    """The names of the regular files beside `path`; asked one by one, never listed."""

    def __init__(self, path: str) -> None:
        self._folder = os.path.dirname(path)  # noqa: PTH120

    def __contains__(self, name: object) -> bool:
        return os.path.isfile(os.path.join(self._folder, str(name)))  # noqa: PTH113, PTH118


def _sidecar_caption(path: str, names: Container[object]) -> str:
    """Text of NAME.txt, else "caption" of NAME.json, else nothing; `names`: files beside it."""
    stem = os.path.splitext(path)[0]  # noqa: PTH122
    for suffix in CAPTION_SUFFIXES:
        if os.path.basename(stem) + suffix in names:  # noqa: PTH119
            return _read_caption(Path(stem + suffix))
    return ""


def _read_caption(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CAPTION_BYTES + 1)
        if len(content) > MAX_CAPTION_BYTES:
            raise SourceError(f"{path}: a caption has at most {MAX_CAPTION_BYTES} bytes")
        text = content.decode("utf-8-sig")
        document = {"caption": text} if path.suffix == ".txt" else json.loads(text)
    except UnicodeDecodeError:
        raise SourceError(f"{path}: a caption must be UTF-8") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: {error}") from None
    caption = document.get("caption") if isinstance(document, dict) else document
    if caption is not None and not (isinstance(document, dict) and isinstance(caption, str)):
        raise SourceError(f'{path}: expected {{"caption": "text"}}')
    return (caption or "").strip()


def _raise_faults(faults: list[str]) -> None:
    if faults:
        more = len(faults) - MAX_FAULTS
        shown = faults[:MAX_FAULTS] + ([f"and {more} more"] if more > 0 else [])
        raise SourceError("collect.source is invalid:\n  " + "\n  ".join(shown))
