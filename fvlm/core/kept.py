"""What finished work needs to be handed back later: claims on names, and DVC's cache.

A claim says that this process makes the work of a name at present. It is a lock of the kernel's on
one byte of a file, and so vanishes with its process, however that ends.
"""

import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fvlm.core.io import atomic_write, state_folder

FICLONE = 0x40049409  # ioctl: share the blocks of another file (copy on write)
_FLOCK = "hhqqi0q"  # struct flock of Linux


class Claims:
    """Names that this process works on, in a folder that several processes use.

    Byte 0 of the file `claims` is everybody's, shared: `alone` tells whether nobody else is there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "claims").open("a+b", buffering=0)
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, 0)
        self._told = set[str]()  # processes whose work was waited for

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, name: str) -> bool:
        """Claim a hex name; False when another process has claimed it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(name))
        except OSError:
            return False
        return True

    def wait(self, name: str, what: str) -> None:
        """Claim a name as soon as the process that has it gives it up or ends.

        Says once for each process that it waits for that one.
        """
        if not self.take(name):
            holder = self._holder(name)
            if holder not in self._told:
                print(f"waiting for {holder}, which makes {what}", file=sys.stderr)
                self._told.add(holder)
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, _place(name))

    def release(self, name: str) -> None:
        """Give up a claim."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(name))

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether no other process is at work in this folder; none enters before the block ends."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except OSError:
            yield False
            return
        yield True
        fcntl.lockf(self._file, fcntl.LOCK_SH, 1, 0)

    def _holder(self, name: str) -> str:
        with suppress(OSError, struct.error):
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _place(name), 1, 0)
            process = struct.unpack(_FLOCK, fcntl.fcntl(self._file, fcntl.F_GETLK, asked))[-1]
            if process > 0:
                return f"process {process}"
        return "another process"


def _place(name: str) -> int:
    """The byte that stands for a hex name; byte 0 is taken."""
    return 1 + int(name[:15], 16)


class DvcCache:
    """The cache of the DVC project around the working directory, and what dvc.lock says of it."""

    def find(self, md5: str) -> Path | None:
        """The cached file with this content; it is shared and read-only."""
        if self.folder is None:
            return None
        path = self.folder / "files" / "md5" / md5[:2] / md5[2:]
        return path if path.is_file() else None

    @cached_property
    def folder(self) -> Path | None:
        """Where the cache is; None without a project.

        DVC itself is asked: the place may come from four configuration files, and temporary
        experiments share the cache of the project that started them.
        """
        here = Path.cwd()
        if not any((folder / ".dvc").is_dir() for folder in (here, *here.parents)):
            return None
        command = [sys.executable, "-m", "dvc", "cache", "dir"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return here / answer.stdout.strip() if answer.returncode == 0 else None

    def last_output(self, out: Path) -> dict[str, Path]:
        """The cached files of the folder `out` as a dvc.lock has it, by their names inside.

        DVC deletes an output before its stage runs, and has its files all the same. Empty when
        nothing is locked; files that the cache lacks are left out.
        """
        with suppress(OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
            outs = list(_locked_outputs())
            (md5,) = [entry["md5"] for entry in outs if entry["path"] == out.as_posix()]
            listing = self.find(md5)
            rows: list[dict[str, Any]] = json.loads(listing.read_bytes()) if listing else []
            files = {row["relpath"]: self.find(row["md5"]) for row in rows}
            return {name: path for name, path in files.items() if path is not None}
        return {}


def _locked_outputs() -> Iterator[dict[str, Any]]:
    """What the lock files of all pipelines say of outputs; their paths start at the root."""
    for path in (Path("dvc.lock"), *sorted(Path().glob("*/dvc.lock"))):
        if path.exists():
            for stage in yaml.load(path.read_bytes(), yaml.CSafeLoader)["stages"].values():
                yield from stage.get("outs", [])


def tell_dvc(md5s: Mapping[Path, str]) -> None:
    """Hand DVC the md5 of files of the project, so that it does not read them again.

    It remembers them with inode, time and size, as what it has read itself. Where that goes wrong
    (its inside is not a public interface) nothing happens, and DVC reads the files.
    """
    paths = {os.path.abspath(path): md5 for path, md5 in md5s.items()}  # noqa: PTH100
    subprocess.run(
        [sys.executable, "-c", _TELL],
        input=json.dumps(paths),
        text=True,
        capture_output=True,
        check=False,
    )


_TELL = """
import json, sys
from dvc.fs import localfs
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo

md5s = json.load(sys.stdin).items()
with Repo() as repo:
    repo.state.save_many(((path, HashInfo("md5", md5), None) for path, md5 in md5s), localfs)
"""


def md5_of_cached(path: Path) -> str:
    """The md5 that names a file of DVC's cache."""
    return path.parent.name + path.name


def link_or_copy(source: Path, target: Path) -> None:
    """Hard link; where that is impossible a copy, sharing blocks if the file system can."""
    with suppress(OSError):
        target.hardlink_to(source)
        return
    with source.open("rb") as original, atomic_write(target) as copy:
        try:
            fcntl.ioctl(copy, FICLONE, original.fileno())
        except OSError:
            shutil.copyfileobj(original, copy, 1 << 20)


def forget(stage: str) -> None:
    """From now on nothing that the stage kept before is handed back, until it has run again."""
    with atomic_write(_forgotten(stage)) as file:
        file.write(b"")


def remade(stage: str) -> None:
    """The stage has run: what it keeps counts again."""
    _forgotten(stage).unlink(missing_ok=True)


def counts(stage: str, record: Path | None = None) -> bool:
    """Whether kept work may be handed back: not when it was made before `forget` was said."""
    with suppress(FileNotFoundError):
        said = _forgotten(stage).stat().st_mtime_ns
        return record is not None and record.stat().st_mtime_ns > said
    return record is None or record.exists()


def _forgotten(stage: str) -> Path:
    return state_folder() / "forgotten" / stage
