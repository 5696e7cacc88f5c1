"""Facts about many videos: probed in sandboxed workers, remembered as long as a file is untouched.

The record is a file of JSON lines that every probe appends to, so that an interrupted run keeps
what it has done. Lines that cannot be read are ignored, which costs a probe.
"""

import hashlib
import json
import os
import stat
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

from fvlm.core.errors import VideoError
from fvlm.core.identity import made_by
from fvlm.core.io import file_stamp, naming_full_disk, state_folder
from fvlm.core.kept import counts
from fvlm.video.reasons import PASSING, Reason

PROBE = "fvlm.video.probe:probe_request"


@dataclass(frozen=True)
class VideoFacts:
    """What the filter decides by.

    duration_seconds: from the first frame's appearance to the last one's disappearance.
    fps: average frames per second. frames: number of frames that are shown.
    width, height: pixels, after rotation. rotation: degrees clockwise that a player turns the
    coded picture (0, 90, 180, 270). container: short name such as mp4, webm, avi.
    video_stream: which of the file's video_streams it is, from 1.
    """

    duration_seconds: float
    fps: float
    frames: int
    width: int
    height: int
    codec: str
    container: str
    rotation: int
    video_stream: int
    video_streams: int


@dataclass(frozen=True)
class Facts(VideoFacts):
    """What a probe tells, and the sha256 of the content."""

    sha256: str


FACTS = tuple(Facts.__dataclass_fields__)


def probe_folder() -> Path:
    """Where records of facts lie, one file for each version of the code."""
    return state_folder() / "probe"


def probe_version() -> str:
    """Changes with the code that probes and with PyAV: facts of another version do not count."""
    return made_by(PROBE)


class Record:
    """JSON lines that are only ever appended to; the last one with a name counts.

    by: the field of a line that holds its name. Memory holds where each one stands in the file.
    Lines that an interrupted run left open, or that cannot be read, are ignored.
    """

    def __init__(self, path: Path, *, by: str) -> None:
        self._path, self._by = path, by
        self._places: dict[int, int] = {}  # by hash of the name
        self._separator, place = b"", 0
        path.parent.mkdir(parents=True, exist_ok=True)
        if not counts("filter", path):
            return
        with path.open("rb") as file:
            for line in file:
                with suppress(ValueError, TypeError, KeyError, AttributeError):
                    self._places[_hash(json.loads(line)[by])] = place
                place += len(line)
                # A line that an interrupted run left open must not swallow the next one.
                self._separator = b"" if line.endswith(b"\n") else b"\n"

    def find(self, name: str) -> dict[str, Any] | None:
        """The last line with this name."""
        place = self._places.get(_hash(name))
        if place is None:
            return None
        self._reader.seek(place)
        with suppress(ValueError, TypeError, KeyError):
            entry: dict[str, Any] = json.loads(self._reader.readline())
            return entry if entry[self._by] == name else None
        return None

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line."""
        with naming_full_disk(self._path), self._path.open("ab") as file:
            place = file.seek(0, os.SEEK_END) + len(self._separator)
            file.write(self._separator + json.dumps(entry).encode() + b"\n")
        self._places[_hash(entry[self._by])], self._separator = place, b""

    @cached_property
    def _reader(self) -> IO[bytes]:
        reader = self._path.open("rb")
        weakref.finalize(self, reader.close)
        return reader


def failure(entry: Mapping[str, Any]) -> VideoError | None:
    """What a line tells of a video that cannot be used; None of another one."""
    return VideoError(Reason(entry["reason"]), entry["message"]) if entry["reason"] else None


def described(outcome: object) -> dict[str, str]:
    """The fields of a line that `failure` reads."""
    if isinstance(outcome, VideoError):
        return {"reason": str(outcome.reason), "message": str(outcome)}
    return {"reason": "", "message": ""}


class FactRecord(Record):
    """Outcomes of earlier probes by path, valid while the file's stamp is the same."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, by="path")

    def get(self, path: str, key: list[int] | None = None) -> Facts | VideoError | None:
        """What the last probe of the file gave, or None; with `key` only if it is untouched."""
        entry = self.find(path)
        with suppress(ValueError, TypeError, KeyError):
            if entry and key in (None, entry["key"]):
                return failure(entry) or Facts(**entry["facts"])
        return None

    def put(self, path: str, key: list[int], outcome: Facts | VideoError) -> None:
        """Append an outcome unless another run may see another one."""
        if isinstance(outcome, VideoError) and outcome.reason in PASSING:
            return
        facts = {} if isinstance(outcome, VideoError) else {"facts": asdict(outcome)}
        self.append({"path": path, "key": key} | described(outcome) | facts)


def _hash(name: str) -> int:
    """64 bits; an entry is compared with the whole name."""
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


V = TypeVar("V", bound=Mapping[str, Any])


def probe_all(
    videos: Iterable[V], record: FactRecord
) -> Iterator[tuple[V | dict[str, Any], Facts | VideoError]]:
    """Yield (video, outcome) for every video once, remembered ones first.

    videos: with a `path` each; gone through twice. Afterwards the record has every outcome but
    those that another run may see otherwise.
    """
    # The worker's module brings numpy, which a run without a new video does without.
    from fvlm.video.worker import map_isolated

    kinds, parts = bytearray(), set[int]()
    for video in videos:
        path = video["path"]
        key = stat_key(path)
        outcome = record.get(path, key) if isinstance(key, list) else key
        kinds.append(_KNOWN if outcome is not None else _kind(video, parts))
        if outcome is not None:
            yield video, outcome
    new = (video for video, kind in zip(videos, kinds, strict=True) if kind == _NEW)
    items = (dict(video) | {"probed": stat_key(video["path"])} for video in new)
    unremembered = dict[str, VideoError]()
    for item, result in map_isolated(PROBE, items if _NEW in kinds else []):
        path, key = item["path"], item["probed"]
        outcome = result if isinstance(result, VideoError) else Facts(**result.values)
        if stat_key(path) != key:
            outcome = VideoError(Reason.NOT_A_FILE, "the file changed while it was read")
        if isinstance(key, list):
            record.put(path, key, outcome)
        if isinstance(outcome, VideoError) and outcome.reason in PASSING and _hash(path) in parts:
            unremembered[path] = outcome
        yield item, outcome
    again = (video for video, kind in zip(videos, kinds, strict=True) if kind == _AGAIN)
    for video in again if _AGAIN in kinds else ():
        outcome = unremembered.get(video["path"]) or record.get(video["path"])
        assert outcome is not None, "another part of the file was probed"
        yield video, outcome


_KNOWN, _NEW, _AGAIN = range(3)


def _kind(video: Mapping[str, Any], parts: set[int]) -> int:
    """Whether to probe a video that is not known; parts: files of which a part was met before."""
    if video.get("start") is None and video.get("end") is None:
        return _NEW
    path = _hash(video["path"])
    kind = _AGAIN if path in parts else _NEW
    parts.add(path)
    return kind


def stat_key(path: str) -> list[int] | VideoError:
    """The stamp of a regular file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - once for every video
    except OSError as error:
        return VideoError(Reason.NOT_A_FILE, f"{error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return VideoError(Reason.NOT_A_FILE, "not a regular file")
    return file_stamp(status)
