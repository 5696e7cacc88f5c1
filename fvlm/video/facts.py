"""Facts about many videos: probed in sandboxed workers, remembered as long as a file is untouched.

The record is a file of JSON lines that every probe appends to, so that an interrupted run keeps
what it has done. Lines that cannot be read are ignored, which costs a probe.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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


class FactRecord:
    """Outcomes of earlier probes by path, valid while the file's stamp is the same."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if counts("filter", path) else b""
        for line in content.split(b"\n"):
            try:
                entry = json.loads(line)
                self._entries[entry["path"]] = entry
            except (ValueError, TypeError, KeyError):
                continue
        # A line that an interrupted run left open must not swallow the next one.
        self._separator = b"" if content.endswith(b"\n") or not content else b"\n"

    def get(self, path: str, key: list[int]) -> Facts | VideoError | None:
        """What an earlier probe of the untouched file gave, or None."""
        entry = self._entries.get(path)
        if entry is None or entry.get("key") != key:
            return None
        try:
            if entry["reason"]:
                return VideoError(Reason(entry["reason"]), entry["message"])
            return Facts(**entry["facts"])
        except (ValueError, TypeError, KeyError):
            return None

    def put(self, path: str, key: list[int], outcome: Facts | VideoError) -> None:
        """Append an outcome unless another run may see another one."""
        entry: dict[str, Any] = {"path": path, "key": key, "reason": "", "message": ""}
        if isinstance(outcome, VideoError):
            if outcome.reason in PASSING:
                return
            entry |= {"reason": str(outcome.reason), "message": str(outcome)}
        else:
            entry["facts"] = asdict(outcome)
        with naming_full_disk(self._path), self._path.open("ab") as file:
            file.write(self._separator + json.dumps(entry).encode() + b"\n")
        self._separator = b""


def probe_all(paths: Iterable[str], record: FactRecord) -> Iterator[tuple[str, Facts | VideoError]]:
    """Yield (path, outcome) for every path once, remembered ones first."""
    # The worker's module brings numpy, which a run without a new video does without.
    from fvlm.video.worker import map_isolated

    keys: dict[str, list[int]] = {}
    for path in paths:
        key = stat_key(path)
        outcome = record.get(path, key) if isinstance(key, list) else key
        if outcome is not None:
            yield path, outcome
        elif isinstance(key, list):
            keys[path] = key
    for item, result in map_isolated(PROBE, [{"path": path} for path in keys]):
        path = item["path"]
        outcome = result if isinstance(result, VideoError) else Facts(**result.values)
        if stat_key(path) != keys[path]:
            outcome = VideoError(Reason.NOT_A_FILE, "the file changed while it was read")
        record.put(path, keys[path], outcome)
        yield path, outcome


def stat_key(path: str) -> list[int] | VideoError:
    """The stamp of a regular file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - once for every video
    except OSError as error:
        return VideoError(Reason.NOT_A_FILE, f"{error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return VideoError(Reason.NOT_A_FILE, "not a regular file")
    return file_stamp(status)
