"""Files and their names: atomic writes, JSON lines, tables, hashes, sample keys, state folders."""

import csv
import errno
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fvlm.core.errors import FvlmError

KEY = re.compile(r"[a-z0-9_-]{1,80}")
SLUG_LENGTH, DIGEST_LENGTH = 55, 24  # characters; 96 bits of sha256 keep keys apart
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota, `ulimit -f`


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes `path` only when the block ends without an error.

    The data and the folder entry are fsynced, so that after a crash `path` holds either the old
    bytes or all of the new ones. What a killed process left of the same file is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming_full_disk(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _delete_leftovers(path: Path) -> None:
    """Temporary files of `path` whose process is gone."""
    for name in os.listdir(path.parent):  # noqa: PTH208 - quick in a folder of many files
        if name.startswith(f".{path.name}.") and name.endswith(".tmp"):
            process = name.removeprefix(f".{path.name}.").removesuffix(".tmp")
            if process.isdigit() and not is_running(int(process)):
                path.with_name(name).unlink(missing_ok=True)


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
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise FvlmError(f"{path} not found; run `dvc repro` to make it") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise FvlmError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise FvlmError(f"{path}:{number}: expected a JSON object, got {row!r}")
        rows.append(row)
    return rows


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str] = ()) -> None:
    """Write a header and one line a row; None and what a row lacks stay empty.

    columns: those that stand first, whether rows have them or not; then in the order of the rows.
    """
    text = io.StringIO()
    names = dict.fromkeys([*columns, *(name for row in rows for name in row)])
    writer = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        # File names need not be UTF-8: what could not be decoded goes out as the bytes it was.
        file.write(text.getvalue().encode(errors="surrogateescape"))


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

    Matches `[a-z0-9_-]+`, at most 80 characters, distinct for distinct ids. Any `str` is an id,
    including surrogate-escaped bytes of names that are not UTF-8.
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
    """Downloads and converted weights, shared by all checkouts: `$FVLM_CACHE`, else ~/.cache."""
    return Path(os.environ.get("FVLM_CACHE", Path.home() / ".cache" / "fvlm"))
