"""A folder of clips in the cache that is made once, whole or not at all, and made anew if damaged.

All clips get one modification time: nothing depends on the day they were made, and a changed clip
shows.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from fvlm.core.errors import FvlmError
from fvlm.core.io import read_jsonl, sha256_file, write_jsonl

CLIP_TIME_NS = 1_211_500_800 * 10**9  # May 2008, when the film of the demo corpus was released
MARKER = "complete.jsonl"


def build_once(folder: Path, names: Sequence[str], build: Callable[[Path], None]) -> Path:
    """`folder` with the clips `names`; `build` writes them into another folder, already made.

    What `build` raises leaves nothing behind.
    """
    if is_complete(folder, names):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
        built = Path(temporary) / "clips"
        built.mkdir()
        build(built)
        rows = []
        for clip in (built / name for name in names):
            os.utime(clip, ns=(CLIP_TIME_NS, CLIP_TIME_NS))
            size = clip.stat().st_size
            rows.append({"name": clip.name, "size": size, "sha256": sha256_file(clip)})
        write_jsonl(built / MARKER, rows)
        _publish(built, folder, names)
    return folder


def is_complete(folder: Path, names: Sequence[str]) -> bool:
    """Whether every clip is there with its size and time."""
    try:
        sizes = {row["name"]: row["size"] for row in read_jsonl(folder / MARKER)}
        stats = {name: (folder / name).stat() for name in names}
    except (FvlmError, OSError, KeyError):
        return False
    return all(
        stat.st_size == sizes.get(name) and stat.st_mtime_ns == CLIP_TIME_NS
        for name, stat in stats.items()
    )


def _publish(built: Path, folder: Path, names: Sequence[str]) -> None:
    """Rename the clips into place, in the stead of a damaged folder."""
    if folder.exists() and not is_complete(folder, names):
        shutil.rmtree(folder)
    try:
        built.rename(folder)
    except OSError:
        if not is_complete(folder, names):  # else another process was faster
            raise
