"""Finished shards outlive the run that made them.

Layout of `.state/shards/STAGE/`, for a shard with fingerprint F:

    lock      held (flock) by the run that builds the stage; vanishes with its process
    F.json    the record: size, digests, sample count, notes; tiny, kept for ever
    F.tar     the shard itself, from its completion until it lies safe in DVC's cache

What happens to `F.tar`: it stays until its run succeeds. Then it is kept only as a hard link of the
file in the stage's output, which costs nothing and covers a crash while DVC moves the output into
its cache; other leftovers, and copies where the file system cannot link, are deleted. The next run
deletes those that DVC's cache holds. So at most one run's shards are ever kept here.

A known fingerprint is served from `F.tar` or from DVC's cache, which names files by md5. Such files
are shared and read-only: they are linked, never written. A damaged one is deleted and the shard
computed again.

That a video's content cannot be decoded is remembered with the shard, too. A failure of the machine
(a time-out, say) is not: such a shard is made anew whenever the stage runs.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fvlm.core.errors import FvlmError
from fvlm.core.io import atomic_write, naming_full_disk, read_json, state_folder, write_json
from fvlm.shards.verify import DamagedShardError, verify_file
from fvlm.shards.write import ShardFacts

FICLONE = 0x40049409  # ioctl: share the blocks of another file (copy on write)


@dataclass(frozen=True)
class ShardRecord:
    """What is remembered of a finished shard. `facts` is None when no member gave a sample."""

    facts: ShardFacts | None
    notes: list[dict[str, Any]]


class ShardStore:
    """Finished shards of one stage, by fingerprint."""

    def __init__(self, stage: str) -> None:
        self._folder = state_folder() / "shards" / stage
        self._stage = stage

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run of this stage out; raises FvlmError that names the holder.

        The lock is the kernel's, not the file: it vanishes with its process, however that ends.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("a+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().decode().strip() or "another process"
                raise FvlmError(f"stage {self._stage} is already being run by {holder}") from None
            file.truncate(0)
            started = time.strftime("%Y-%m-%d %H:%M:%S %z")
            with naming_full_disk(Path(file.name)):
                holder = f"process {os.getpid()} on {socket.gethostname()} since {started}\n"
                file.write(holder.encode())
            self._delete_leftovers()
            yield

    def path(self, fingerprint: str) -> Path:
        """Where the finished shard of this fingerprint is kept."""
        return self._folder / f"{fingerprint}.tar"

    def remember(self, fingerprint: str, record: ShardRecord) -> None:
        """From now on the shard counts as finished; its file must lie at `path` already."""
        write_json(self._record(fingerprint), asdict(record))

    def recall(self, fingerprint: str) -> ShardRecord | None:
        """The record of a finished shard, its file at `path`; None when it must be computed."""
        record = self._read(fingerprint)
        if record is None or record.facts is None:
            return record
        kept = self.path(fingerprint)
        if _is_intact(kept, record.facts):
            return record
        cached = self._cached(record.facts)
        if cached is not None and _is_intact(cached, record.facts):
            _link_or_copy(cached, kept)
            return record
        return None

    def place(self, fingerprint: str, target: Path) -> None:
        """Put a finished shard at `target`."""
        _link_or_copy(self.path(fingerprint), target)

    def forget_files(self, placed: dict[str, Path]) -> None:
        """Delete kept shards, except hard links of the files that the run has just placed."""
        for kept in self._folder.glob("*.tar"):
            target = placed.get(kept.stem)
            if target is None or not target.samefile(kept):
                kept.unlink()

    def _delete_leftovers(self) -> None:
        """Files of killed runs, and shards that DVC's cache holds by now."""
        for temporary in self._folder.glob(".*.tmp"):
            temporary.unlink()
        for kept in self._folder.glob("*.tar"):
            record = self._read(kept.stem)
            facts = record.facts if record else None
            cached = self._cached(facts) if facts else None
            if facts is None or (cached and _has_size(cached, facts.bytes)):
                kept.unlink()

    def _read(self, fingerprint: str) -> ShardRecord | None:
        with suppress(FvlmError, TypeError, KeyError):
            stored = read_json(self._record(fingerprint))
            facts = stored["facts"]
            return ShardRecord(ShardFacts(**facts) if facts else None, stored["notes"])
        return None

    def _record(self, fingerprint: str) -> Path:
        return self._folder / f"{fingerprint}.json"

    def _cached(self, facts: ShardFacts) -> Path | None:
        """Where DVC's cache would hold the shard."""
        if self._cache is None:
            return None
        return self._cache / "files" / "md5" / facts.md5[:2] / facts.md5[2:]

    @cached_property
    def _cache(self) -> Path | None:
        return dvc_cache_folder()


def dvc_cache_folder() -> Path | None:
    """The local cache of the DVC project around the working directory; None without a project.

    DVC itself is asked: the place may come from four configuration files, and temporary experiments
    share the cache of the project that started them.
    """
    here = Path.cwd()
    if not any((folder / ".dvc").is_dir() for folder in (here, *here.parents)):
        return None
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return here / answer.stdout.strip() if answer.returncode == 0 else None


def _is_intact(path: Path, facts: ShardFacts) -> bool:
    """Whether the file is there and whole; a damaged one is deleted, as DVC does with its own."""
    if not path.exists():
        return False
    try:
        verify_file(path, size=facts.bytes, sha256=facts.sha256)
    except DamagedShardError as damage:
        print(f"{path} is damaged: {damage.detail}; computing the shard again", file=sys.stderr)
        path.unlink()
        return False
    return True


def _has_size(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _link_or_copy(source: Path, target: Path) -> None:
    """Hard link; where that is impossible a copy, sharing blocks if the file system can."""
    with suppress(OSError):
        target.hardlink_to(source)
        return
    with source.open("rb") as original, atomic_write(target) as copy:
        try:
            fcntl.ioctl(copy, FICLONE, original.fileno())
        except OSError:
            shutil.copyfileobj(original, copy, 1 << 20)
