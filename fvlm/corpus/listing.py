"""List the videos of `collect.source` without opening them: a stat per file, captions from text.

A folder is walked recursively. Taken are regular files with a suffix of VIDEO_SUFFIXES in any case.
All else is counted: other files by suffix; hidden files and folders, FIFOs, sockets, devices and
links that lead nowhere by their kind. Links are followed; a folder that several links lead to is
walked once, by its real place where that lies inside. A pattern (`videos/**/*.mp4`) is the folder
before its first wildcard; what does not match is counted, too.
The rows of a list (see tables.py) have a `path`, relative to the list, and an optional `caption`.
An experiment of DVC reads the list as it was when the experiment was queued, if git tracks it.
A column `video_id` names a video, a column `group` the film that several videos were cut from;
`start` and `end`, in seconds, take a part of a file: several rows may take parts of one, which are
then a group. In a folder, `metadata.csv` or `metadata.jsonl` with a column `file_name` says the
same of its videos.
A video without a caption in its row has the text of NAME.txt beside it, or "caption" of NAME.json.
"""

import difflib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from pydantic import Field, field_validator

from fvlm.core.errors import SourceError
from fvlm.core.io import file_stamp, project_root
from fvlm.core.params import Params
from fvlm.corpus.captions import sidecar_caption
from fvlm.corpus.controls import RENDERED
from fvlm.corpus.demo import demo_captions, demo_folder, demo_questions
from fvlm.corpus.listed import URL, ListedVideo, parse_row
from fvlm.corpus.rendered import rendered_folder
from fvlm.corpus.tables import LIST_SUFFIXES, Numbered, read_table
from fvlm.corpus.walk import matches, split_pattern, walk

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265",
    ".hevc", ".ivf", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg",
    ".mts", ".mxf", ".nut", ".ogg", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm",
    ".wmv", ".wtv", ".y4m",
})
# Raw streams that do not say how fast they play: they have to be wrapped.
RAW_SUFFIXES = frozenset({".mjpeg", ".mjpg", ".obu"})
# fmt: on
# Of the model hub's data sets: beside the videos, whose paths are in the column `file_name`.
METADATA = ("metadata.csv", "metadata.jsonl")
SOURCES = (
    "a folder, a video, a pattern (videos/**/*.mp4), a list of paths "
    f"({', '.join(LIST_SUFFIXES)}), or demo"
)
MAX_FAULTS = 20  # shown of a long list
TOLD = (
    "video_id",
    "caption",
    "group",
    "start",
    "end",
    "questions",
)  # by rows about the videos of a folder


class CollectParams(Params):
    """What to list.

    source: `demo`, a control corpus (see fvlm/corpus/controls.py), a folder, a video, a pattern, or
    a list; relative to the project's root. path_column, caption_column: of a list; empty: found by
    its usual names (see tables.py). group: a regular expression on the video id whose first group,
    or else whose match, names the film that the video was cut from; empty: every video is its own
    group. questions: a file of them, see questions.py; relative to the project's root.
    control_clips, control_seed: size and content of a control corpus.
    """

    source: str
    path_column: str = ""
    caption_column: str = ""
    group: str = ""
    questions: str = ""
    control_clips: int = Field(ge=2)
    control_seed: int

    @field_validator("source")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        if not value.strip() or "\0" in value:
            raise ValueError(f"may be {SOURCES}, got {value!r}")
        if URL.match(value):
            raise ValueError(
                f"{value!r} is a URL: download the videos first, or mount what holds them; "
                f"the source may be {SOURCES}"
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
        captions, asked = demo_captions(), demo_questions()
        listed, _ = _list_folder(demo_folder())  # beside the videos there is only a marker
        named = [
            replace(video, caption=captions[video.video_id], questions=asked[video.video_id])
            for video in listed
        ]
        return named, Counter()
    for corpus in RENDERED:
        if source == corpus:
            clips, seed = params.control_clips, params.control_seed
            listed, _ = _list_folder(rendered_folder(corpus, clips=clips, seed=seed))
            return listed, Counter()
    path = project_root() / Path(source).expanduser()
    videos, left_out = _list_path(path, params)
    if not videos:
        found = f", only {in_words(left_out)}" if left_out else ""
        raise _source_error(f"no videos in {path}{found}")
    return sorted(videos, key=lambda video: video.video_id), left_out


def _list_path(path: Path, params: CollectParams) -> tuple[list[ListedVideo], Counter[str]]:
    rows, suffix = own_copy(path), path.suffix.lower()
    if path.is_dir():
        return _list_folder(path, params=params)
    if rows.is_file() and suffix in LIST_SUFFIXES:
        table = read_table(rows).select(params.path_column, params.caption_column)
        return _list_rows(rows, table, path.parent, params), Counter()
    if path.is_file() and suffix in VIDEO_SUFFIXES:
        return [parse_row(path.parent, {"path": path.name}, params.group_of)], Counter()
    if path.exists():
        raise _source_error(f"{path} is neither a folder, nor a video, nor a list")
    pattern = split_pattern(path)
    if pattern is None:
        names = difflib.get_close_matches(params.source, ("demo", *RENDERED), n=1, cutoff=0.8)
        meant = "".join(f" (did you mean {name}?)" for name in names)
        raise _source_error(f"{path} does not exist{meant}")
    return _list_folder(*pattern, params=params)


def in_words(left_out: Counter[str]) -> str:
    """What was left out, the most frequent first; with advice for raw streams."""
    words = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
    for suffix in sorted(RAW_SUFFIXES & left_out.keys()):
        words += f"; wrap {suffix}: ffmpeg -framerate RATE -i NAME{suffix} -c copy NAME.mkv"
    return words


def _source_error(fault: str) -> SourceError:
    return SourceError(f"{fault}; collect.source may be {SOURCES}")


def _list_folder(
    root: Path, pattern: Sequence[str] = (), *, params: CollectParams | None = None
) -> tuple[list[ListedVideo], Counter[str]]:
    """What lies in a folder, or matches there; params: of own videos, with metadata beside them.

    The numbers of videos and of what was left out are together that of all entries but folders.
    """
    videos, faults, left_out = list[ListedVideo](), list[str](), Counter[str]()
    metadata = list[Path]()
    depth = len(pattern) if pattern and "**" not in pattern else None
    for folder, entries in walk(str(root), left_out, depth):
        names = {entry.name for entry in entries}
        metadata += [Path(folder, name) for name in METADATA if name in names]
        for entry in entries:
            path = os.path.join(folder, entry.name)  # noqa: PTH118 - a Path a file costs more
            video_id = os.path.relpath(path, root)
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
            if pattern and not matches(Path(video_id).parts, pattern):
                left_out["not matching"] += 1
            elif suffix not in VIDEO_SUFFIXES:
                left_out[suffix or "file without a suffix"] += 1
            else:
                try:
                    status, caption = entry.stat(), sidecar_caption(path, names)
                    stamp = file_stamp(status)
                    videos.append(ListedVideo(video_id, path, status.st_size, stamp, caption))
                except FileNotFoundError:
                    left_out["vanished file"] += 1
                except SourceError as error:
                    faults.append(str(error))
    _raise_faults(faults)
    return (_add_metadata(videos, metadata, root, params) if params else videos), left_out


def _add_metadata(
    videos: list[ListedVideo], metadata: list[Path], root: Path, params: CollectParams
) -> list[ListedVideo]:
    """The videos of a folder with id, caption and group from the rows that are about them."""
    about = defaultdict[str, list[ListedVideo]](list)
    for path in metadata:
        table = read_table(path)
        if params.path_column or "file_name" in table.columns:
            rows = table.select(params.path_column or "file_name", params.caption_column)
            elsewhere = set(about)
            for row in _list_rows(path, rows, path.parent, params, root):
                if row.path in elsewhere:
                    raise SourceError(f"{path}: {row.path} stands in another such file already")
                about[row.path].append(row)
    videos = [
        replace(video, **{name: getattr(row, name) for name in TOLD})
        for video in videos
        for row in about.get(os.path.abspath(video.path), [video])  # noqa: PTH100 - as in parse_row
    ]
    for video_id, count in Counter(video.video_id for video in videos).items():
        if count > 1:
            raise SourceError(f"{count} videos in {root} have the id {video_id!r}")
    return videos


def own_copy(path: Path) -> Path:
    """The list as the experiment that runs here has it, else as it lies in the project.

    A queued experiment runs in a folder with the files that git tracks, as they were when it was
    queued. Videos are mostly not among them.
    """
    root = project_root()
    own = Path.cwd() / path.relative_to(root) if path.is_relative_to(root) else path
    return own if own.is_file() else path


def _list_rows(
    path: Path,
    rows: Iterable[Numbered],
    folder: Path,
    params: CollectParams,
    root: Path | None = None,
) -> list[ListedVideo]:
    """The videos of the rows of the list `path`; `folder`, `root`: see `parse_row`."""
    videos, faults = list[ListedVideo](), dict[int, str]()
    line_of: dict[tuple[object, ...], int] = {}
    line_of_id: dict[str, int] = {}
    for line, row in rows:
        try:
            video = parse_row(folder, row, params.group_of, root)
            first = line_of.setdefault((video.path, video.start, video.end), line)
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


def _raise_faults(faults: list[str], lines: str = "") -> None:
    """Name all of them: the first in full, the others by their `lines` where these are known."""
    if faults:
        more = len(faults) - MAX_FAULTS
        where = f", in lines {lines}" if lines else ""
        shown = faults[:MAX_FAULTS] + ([f"and {more} more{where}"] if more > 0 else [])
        raise SourceError("collect.source is invalid:\n  " + "\n  ".join(shown))
