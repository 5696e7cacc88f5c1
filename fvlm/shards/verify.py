"""Is a shard the one that the manifest names? Size always, sha256 before its first use.

A verified file is remembered under `.state/shards/verified/` by device, inode, size and
modification time, so that later runs cost one stat. All hard links of one file share the record.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from fvlm.core.errors import FvlmError, ShardError
from fvlm.core.io import read_json, sha256_file, state_folder, write_json

# A file changed within one tick of the file system's clock keeps its modification time: what was
# verified so shortly after a write is verified again.
RACY_NS = 100_000_000


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
        with suppress(OSError):  # a read-only project still works, it only verifies again
            write_json(_record(sha256), _stamp(status))


def is_verified(path: Path, sha256: str) -> bool:
    """Whether this very file, unchanged since, was found to have this sha256."""
    with suppress(FvlmError, OSError):
        return bool(read_json(_record(sha256)) == _stamp(path.stat()))
    return False


def _stamp(status: os.stat_result) -> dict[str, int]:
    return {
        "device": status.st_dev,
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


def _record(sha256: str) -> Path:
    return state_folder() / "shards" / "verified" / f"{sha256}.json"
