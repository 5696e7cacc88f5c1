"""List the videos of `collect.source` without opening them: a stat per file, captions from text.

A folder is walked recursively. Taken are regular files with a suffix of VIDEO_SUFFIXES in any case.
All else is counted: other files by suffix; hidden files and folders, FIFOs, sockets, devices and
links that lead nowhere by their kind. Links are followed; a folder that several links lead to is
walked once, by its real place where that lies inside.
A list is a .csv or .jsonl file of rows with `path`, relative to the list, and optional `caption`.
An experiment of DVC reads the list as it was when the experiment was queued, if git tracks it.
A column `video_id` names a video, a column `group` the film that several videos were cut from.
A video without a caption in its row has the text of NAME.txt beside it, or "caption" of NAME.json.
"""

import csv
import errno
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from fvlm.core.errors import SourceError
from fvlm.core.io import file_stamp, project_root
from fvlm.core.params import Params
from fvlm.corpus.captions import RegularFiles, sidecar_caption
from fvlm.corpus.controls import RENDERED
from fvlm.corpus.demo import demo_captions, demo_folder
from fvlm.corpus.rendered import rendered_folder

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265",
    ".hevc", ".ivf", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg",
    ".mts", ".mxf", ".nut", ".ogg", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm",
    ".wmv", ".wtv", ".y4m",
})
# Raw streams that do not say how fast they play: they have to be wrapped.
RAW_SUFFIXES = frozenset({".mjpeg", ".mjpg", ".obu"})
KINDS = {
    stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFBLK: "device", stat.S_IFCHR: "device",
}
# fmt: on
LIST_SUFFIXES = (".csv", ".jsonl")
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
    are not UTF-8 are surrogate-escaped. path: absolute. size: bytes. stamp: of the file as it was
    listed (`file_stamp`), so that later stages run when it changes. caption: empty when there is
    none. group: clips of one group are not independent, and are split together.
    """

    video_id: str
    path: str
    size: int
    stamp: list[int]
    caption: str
    group: str = ""


def list_videos(params: CollectParams) -> tuple[list[ListedVideo], Counter[str]]:
    """The videos of `collect.source`, sorted by video_id; and what else lies there, by kind.

    Raises SourceError when the source does not exist or holds no video, and for every faulty row
    and caption, all of them together.
    """
    videos, left_out = _list_source(params)
    grouped = [
        replace(video, group=video.group or params.group_of(video.video_id)) for video in videos
    ]
    return grouped, left_out


def _list_source(params: CollectParams) -> tuple[list[ListedVideo], Counter[str]]:
    source = params.source
    if source == "demo":
        captions = demo_captions()
        listed, left_out = _list_folder(demo_folder())
        named = [replace(video, caption=captions[video.video_id]) for video in listed]
        return named, left_out
    for corpus in RENDERED:
        if source == corpus:
            clips, seed = params.control_clips, params.control_seed
            return _list_folder(rendered_folder(corpus, clips=clips, seed=seed))
    path = project_root() / Path(source).expanduser()
    rows = _own_copy(path)
    if path.is_dir():
        videos, left_out = _list_folder(path)
    elif rows.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        videos, left_out = _list_rows(rows, path.parent), Counter()
    elif path.exists():
        raise _source_error(f"{path} is neither a folder nor a .csv or .jsonl list")
    else:
        raise _source_error(f"{path} does not exist")
    if not videos:
        found = f", only {in_words(left_out)}" if left_out else ""
        raise _source_error(f"no videos in {path}{found}")
    return sorted(videos, key=lambda video: video.video_id), left_out


def in_words(left_out: Counter[str]) -> str:
    """What was left out, the most frequent first; with advice for raw streams."""
    words = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
    for suffix in sorted(RAW_SUFFIXES & left_out.keys()):
        words += f"; wrap {suffix}: ffmpeg -framerate RATE -i NAME{suffix} -c copy NAME.mkv"
    return words


def _source_error(fault: str) -> SourceError:
    return SourceError(
        f"{fault}; collect.source must be demo, a folder with videos (.mp4, .mkv, .webm, .avi and "
        "the like), a .csv or .jsonl list with a `path` in every row, or a control corpus: "
        f"{', '.join(RENDERED)}"
    )


def _list_folder(root: Path) -> tuple[list[ListedVideo], Counter[str]]:
    videos, faults, left_out = list[ListedVideo](), list[str](), Counter[str]()
    for folder, entries in _walk(str(root), left_out):
        names = {entry.name for entry in entries}
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            if suffix not in VIDEO_SUFFIXES:
                left_out[suffix or "file without a suffix"] += 1
                continue
            path = os.path.join(folder, entry.name)  # noqa: PTH118 - a Path a file costs more
            try:
                status, caption = entry.stat(), sidecar_caption(path, names)
            except FileNotFoundError:
                left_out["vanished file"] += 1
                continue
            except SourceError as error:
                faults.append(str(error))
                continue
            video_id = os.path.relpath(path, root)
            stamp = file_stamp(status)
            videos.append(ListedVideo(video_id, path, status.st_size, stamp, caption))
    _raise_faults(faults)
    return videos, left_out


def _walk(root: str, left_out: Counter[str]) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Every folder once, with its visible regular files; real folders before linked ones.

    Adds to `left_out` what is neither.
    """
    visited: set[tuple[int, int]] = set()
    real, linked = [root], list[str]()
    while real or linked:
        folder = real.pop() if real else linked.pop(0)
        try:
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in visited:
                left_out["link to a folder that is listed"] += 1
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(f"{folder}: {error.strerror}") from None
        files = []
        for entry in entries:
            kind = _kind(entry)
            if kind == "folder":
                (linked if entry.is_symlink() else real).append(entry.path)
            elif kind == "file":
                files.append(entry)
            else:
                left_out[kind] += 1
        yield folder, files


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry is or leads to."""
    if entry.name.startswith("."):
        return "hidden"
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        reasons = {errno.ENOENT: "dangling link", errno.ELOOP: "loop of links"}
        return reasons.get(error.errno or 0, "unreadable entry")
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "entry of another kind")


def _own_copy(path: Path) -> Path:
    """The list as the experiment that runs here has it, else as it lies in the project.

    A queued experiment runs in a folder with the files that git tracks, as they were when it was
    queued. Videos are mostly not among them.
    """
    root = project_root()
    own = Path.cwd() / path.relative_to(root) if path.is_relative_to(root) else path
    return own if own.is_file() else path


def _list_rows(path: Path, folder: Path) -> list[ListedVideo]:
    """The videos of a list's rows, whose paths are relative to `folder`."""
    videos, faults = list[ListedVideo](), dict[int, str]()
    line_of: dict[str, int] = {}
    line_of_id: dict[str, int] = {}
    for line, row in _READERS[path.suffix.lower()](path):
        try:
            video = _parse_row(folder, row)
            first = line_of.setdefault(video.path, line)
            if first != line:
                raise SourceError(f"{video.video_id!r} stands in line {first} already")
            named = line_of_id.setdefault(video.video_id, line)
            if named != line:
                raise SourceError(f"{video.video_id!r} is the id of line {named} already")
            videos.append(video)
        except SourceError as error:
            faults[line] = f"{path}:{line}: {error}"
    _raise_faults(list(faults.values()), _ranges(list(faults)[MAX_FAULTS:]))
    return videos


def _ranges(lines: list[int]) -> str:
    """All the line numbers, ascending: 3, 7-9."""
    ranges = []
    for _, run in groupby(enumerate(lines), key=lambda pair: pair[1] - pair[0]):
        numbers = [line for _, line in run]
        ranges.append("-".join(map(str, dict.fromkeys((numbers[0], numbers[-1])))))
    return ", ".join(ranges)


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
    caption = (caption or "").strip() or sidecar_caption(path, RegularFiles(path))
    # An absolute path says where a list lies, and belongs into no file name.
    own = os.path.relpath(path, folder) if os.path.isabs(name) else name  # noqa: PTH117
    return ListedVideo(
        video_id=row.get("video_id") or own,
        path=path,
        size=status.st_size,
        stamp=file_stamp(status),
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


def _raise_faults(faults: list[str], lines: str = "") -> None:
    """Name all of them: the first in full, the others by their `lines` where these are known."""
    if faults:
        more = len(faults) - MAX_FAULTS
        where = f", in lines {lines}" if lines else ""
        shown = faults[:MAX_FAULTS] + ([f"and {more} more{where}"] if more > 0 else [])
        raise SourceError("collect.source is invalid:\n  " + "\n  ".join(shown))
