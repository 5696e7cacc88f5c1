"""What lies in a folder, or in the part of it that a pattern such as `**/*.mp4` names."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from fvlm.core.errors import SourceError

WILDCARDS = frozenset("*?[")
KINDS = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "device",
    stat.S_IFCHR: "device",
}


def split_pattern(path: Path) -> tuple[Path, list[str]] | None:
    """The folder that a pattern starts in, and its parts; None where it is none, or has no folder.

    What exists is taken literally, whatever its name.
    """
    folder, rest = Path(path.anchor), list(path.parts[1:])
    while rest and (folder / rest[0]).is_dir():
        folder /= rest.pop(0)
    return (folder, rest) if rest and WILDCARDS & set(rest[0]) else None


def matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern; `**` is any number of folders."""
    if not names or not pattern:
        return not names and set(pattern) <= {"**"}
    if pattern[0] == "**":
        return matches(names, pattern[1:]) or matches(names[1:], pattern)
    return fnmatchcase(names[0], pattern[0]) and matches(names[1:], pattern[1:])


def walk(
    root: str, left_out: Counter[str], depth: int | None = None
) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Every folder once, with its visible regular files; real folders before linked ones.

    depth: of folders at most, the root is the first. Adds to `left_out` what is neither.
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
        files, deeper = [], folder.count(os.sep) - root.count(os.sep) + 1
        for entry in entries:
            kind = _kind(entry)
            if kind == "folder" and depth is not None and deeper >= depth:
                continue
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
