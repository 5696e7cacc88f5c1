"""Is a shard the one that the manifest names? Size always, sha256 before its first use.

A verified file is remembered in the cache folder by sha256, device, inode, size and modification
time, so that later runs cost one stat, in every checkout and notebook. All hard links of one file
share the record. The change time is not asked: it is another one whenever DVC links a shard.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from fvlm.core.errors import FvlmError, ShardError
from fvlm.core.io import cache_folder, read_json, sha256_file, write_json

# A file changed within one tick of the file system's clock keeps its modification time: what was
# verified so shortly after a write is verified again.
RACY_NS = 100_000_000
_untold = Lock()  # free until it has been said that nothing can be remembered


class DamagedShardError(ShardError):
    """The file is there, but it is not the one that the manifest names; `detail` says how."""

    def __init__(self, path: Path, detail: str) -> None:
        self.detail = detail
        # Forced, because DVC would restore the same damage from its cache (often the same inode);
        # only what is damaged is computed again, see `reuse.py`.
        stage = path.parent.name
        super().__init__(f"{path} is damaged: {detail}; run `dvc repro -f -s {stage}`")


def verify_file(path: Path, *, size: int, sha256: str) -> None:
    """Raise ShardError unless the file has this size (bytes) and this sha256 (hex).

    The content is read only when this very file was not verified before.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise ShardError(
            f"{path} is missing; `dvc checkout` restores it, else `dvc repro`"
        ) from None
    if status.st_size != size:
        raise DamagedShardError(path, f"expected {size} bytes, got {status.st_size}")
    if is_verified(path, sha256):
        return
    actual = sha256_file(path)
    if actual != sha256:
        raise DamagedShardError(path, f"expected sha256 {sha256}, got {actual}")
    if time.time_ns() - status.st_mtime_ns > RACY_NS:
        remember("verified", _name(status, sha256), _stamp(status))


def note_written(path: Path, sha256: str) -> None:
    """Who wrote the file and hashed it on its way saves its first reader from hashing it again."""
    status = path.stat()
    remember("verified", _name(status, sha256), _stamp(status))


def is_verified(path: Path, sha256: str) -> bool:
    """Whether this very file, unchanged since, was found to have this sha256."""
    with suppress(FvlmError, OSError):
        status = path.stat()
        return bool(recall("verified", _name(status, sha256)) == _stamp(status))
    return False


def remember(kind: str, name: str, value: Any) -> None:
    """Keep what is known of a shard for whoever reads it next.

    Where the cache folder cannot be written, reading works as well, and that is said once.
    """
    try:
        write_json(_record(kind, name), value)
    except (FvlmError, OSError) as error:
        if _untold.acquire(blocking=False):
            print(
                f"shards are verified anew each time: nothing can be remembered ({error}); "
                "FVLM_CACHE may name another folder",
                file=sys.stderr,
            )


def recall(kind: str, name: str) -> Any:
    """What was remembered; FvlmError or OSError when there is nothing."""
    return read_json(_record(kind, name))


def _stamp(status: os.stat_result) -> dict[str, int]:
    return {
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def _name(status: os.stat_result, sha256: str) -> str:
    """Copies of one shard have a record each."""
    return f"{sha256}-{status.st_dev:x}-{status.st_ino:x}"


def _record(kind: str, name: str) -> Path:
    return cache_folder() / "shards" / kind / name[:2] / f"{name}.json"
