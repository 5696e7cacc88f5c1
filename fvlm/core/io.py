"""Files and their names: atomic writes, JSON lines, tables, hashes, sample keys, state folders."""

import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from fvlm.core.errors import FvlmError

KEY = re.compile(r"[a-z0-9_-]{1,80}")
SLUG_LENGTH, DIGEST_LENGTH = 48, 24  # characters; 96 bits of sha256 keep keys apart
TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp", re.DOTALL)
OLD = 24 * 3600  # seconds
_swept = dict[str, int]()  # by which process each folder was searched for leftovers
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota, `ulimit -f`


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes `path` only when the block ends without an error.

    The data and the folder entry are fsynced, so that after a crash `path` holds either the old
    bytes or all of the new ones. What killed processes left in the folder is deleted, once a run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = str(path.parent.absolute())
    if _swept.get(folder) != os.getpid():  # once a process: it may hold a million files
        _swept[folder] = os.getpid()
        delete_leftovers(path.parent)
    temporary = path.with_name(temporary_name(path.name))
    try:
        with naming_full_disk(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """A name for `name` while it is being written, which nobody else uses in a shared folder."""
    return f".{name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"


def delete_leftovers(folder: Path) -> None:
    """Delete what killed processes of this machine left under a temporary name.

    What another machine left goes when it is a day old: whether its process lives is not known.
    """
    for name in os.listdir(folder):  # noqa: PTH208 - quick in a folder of many files
        found = TEMPORARY.fullmatch(name)
        path = folder / name
        if found and _is_left(path, *found.groups()):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_left(path: Path, machine: str, process: str) -> bool:
    if machine == _machine():
        return not is_running(int(process))
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > OLD
    return False


@cache
def _machine() -> str:
    """Where process numbers mean something: this boot of this machine, or a container of it."""
    known = [socket.gethostname()]
    with suppress(OSError):  # Linux has both
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        known.append(str(Path("/proc/self/ns/pid").readlink()))
    return hash_json(known)[:8]


def is_running(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; no process at all
        return True
    return True


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError that says that there is no room for it."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, indented, keys in the given order."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")


def write_timings(stage: str, **figures: float | None) -> None:
    """How fast a stage ran, for people: under .state, since results do not depend on it."""
    rounded = {name: None if value is None else round(value, 3) for name, value in figures.items()}
    write_json(state_folder() / "timings" / f"{stage}.json", rounded)


def read_json(path: Path) -> Any:
    """Read one JSON document; an unreadable one raises FvlmError with the file's name."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FvlmError(f"{path} not found; run `dvc repro` to make it") from None
    except ValueError as error:
        raise FvlmError(f"{path} is not valid JSON: {error}") from None


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line; non-ASCII (and undecodable names) are escaped."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; a bad line raises FvlmError with file and line number."""
    return [row for _, row in iterate_jsonl(path)]


def iterate_jsonl(path: Path, holding: bytes = b"") -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines one by one, with the bytes that stand before each.

    holding: lines without these bytes are passed over. Raises FvlmError as `read_jsonl`.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise FvlmError(f"{path} not found; run `dvc repro` to make it") from None
    place = 0
    with file:
        for number, line in enumerate(file, start=1):
            if holding in line and line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise FvlmError(f"{path}:{number}: not valid JSON: {error}") from None
                if not isinstance(row, dict):
                    raise FvlmError(f"{path}:{number}: expected a JSON object, got {row!r}")
                yield place, row
            place += len(line)


def read_line(path: Path, place: int) -> dict[str, Any]:
    """The object of the line that begins behind so many bytes."""
    with path.open("rb") as file:
        file.seek(place)
        row: dict[str, Any] = json.loads(file.readline())
    return row


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str] = ()) -> None:
    """Write a header and one line a row; None and what a row lacks stay empty.

    columns: those that stand first, whether rows have them or not; then in the order of the rows.
    """
    write_columns(path, dict.fromkeys([*columns, *(name for row in rows for name in row)]), rows)


def write_columns(path: Path, names: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a header and one line a row, which has no other columns; memory holds one row."""
    with atomic_write(path) as file:
        # File names need not be UTF-8: what could not be decoded goes out as the bytes it was.
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=False)
        writer = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text.flush()
        text.detach()


def read_csv(path: Path) -> list[dict[str, str | None]]:
    """The rows that `write_csv` wrote; what is empty is None."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [{name: cell or None for name, cell in row.items()} for row in csv.DictReader(file)]


def file_stamp(status: os.stat_result) -> list[int]:
    """What changes with a file's content, also where name, size and time are given back.

    Size (bytes), modification and change time (ns), inode. This is what "unchanged" means wherever
    a file is not read again.
    """
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """Hex sha256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sample_key(video_id: str) -> str:
    """The key of a video's sample: a readable slug and a digest of the whole id.

    Matches `[a-z0-9_-]+`, at most 73 characters, which leaves room for the number of a clip;
    distinct for distinct ids. Any `str` is an id, including surrogate-escaped bytes of names that
    are not UTF-8.
    """
    plain = unicodedata.normalize("NFKD", video_id).encode("ascii", errors="ignore").decode()
    slug = re.sub(r"[^a-z0-9_]+", "-", plain.lower())[:SLUG_LENGTH].strip("-") or "video"
    digest = hashlib.sha256(video_id.encode(errors="surrogatepass")).hexdigest()
    return f"{slug}-{digest[:DIGEST_LENGTH]}"


def project_root() -> Path:
    """The folder of the user's checkout, also inside a temporary DVC experiment."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


def state_folder() -> Path:
    """Where state lives that must survive a run and never travels with an experiment."""
    return project_root() / ".state"


def cache_folder() -> Path:
    """What all checkouts share: `$FVLM_CACHE`, else `fvlm` in `$XDG_CACHE_HOME` or ~/.cache.

    Downloads, converted weights, what is known of shards. Raises FvlmError without a home folder.
    """
    if chosen := os.environ.get("FVLM_CACHE"):
        return Path(chosen)
    common = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not common.is_absolute():  # a relative one counts as none, as XDG has it
        try:
            common = Path.home() / ".cache"
        except RuntimeError:
            raise FvlmError("no home folder for a cache: set FVLM_CACHE to a folder") from None
    return common / "fvlm"
