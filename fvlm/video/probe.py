"""Facts about a video from its container and the first picture; all other frames stay encoded."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from av.container import InputContainer
from av.video.stream import VideoStream

from fvlm.errors import VideoError
from fvlm.video.codec import decode_packets
from fvlm.video.container import (
    TOLERANT,
    Timeline,
    codec_name,
    container_name,
    open_stream,
    read_timeline,
)
from fvlm.video.geometry import Orientation, orientation_of
from fvlm.video.reasons import Reason


@dataclass(frozen=True)
class VideoFacts:
    """What the filter decides by.

    duration_seconds: from the first frame's appearance to the last one's disappearance.
    fps: average frames per second. frames: number of frames that are shown.
    width, height: pixels, after rotation. rotation: degrees clockwise that a player turns the
    coded picture (0, 90, 180, 270). container: short name such as mp4, webm, avi.
    """

    duration_seconds: float
    fps: float
    frames: int
    width: int
    height: int
    codec: str
    container: str
    rotation: int


def probe_video(path: str) -> VideoFacts:
    """Read a video's facts; decodes only the first frame, which carries the rotation.

    Raises VideoError with one of the reasons in `fvlm.video.reasons`. Run it in the sandboxed
    worker on files of unknown origin.
    """
    with open_stream(path, TOLERANT) as (container, stream):
        timeline = read_timeline(path, container, stream)
        orientation = _first_orientation(stream, timeline, container)
        return _facts(container, stream, timeline, orientation)


def probe_request(request: dict[str, Any]) -> dict[str, Any]:
    """Worker entry: {"path"} -> the VideoFacts as a dict, and "sha256" of the content."""
    facts = asdict(probe_video(request["path"]))
    return {**facts, "sha256": content_sha256(request["path"])}


def content_sha256(path: str) -> str:
    """Hex sha256 of the file; raises VideoError(not_a_file) when it has vanished."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - names may hold bytes that are not UTF-8
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise VideoError(Reason.NOT_A_FILE, f"{path}: {error}") from None


def _facts(
    container: InputContainer, stream: VideoStream, timeline: Timeline, orientation: Orientation
) -> VideoFacts:
    shown = timeline.shown
    seconds = float((timeline.end - shown[0]) * timeline.time_base)
    width, height = stream.width, stream.height
    if orientation.transpose:
        width, height = height, width
    return VideoFacts(
        duration_seconds=seconds,
        fps=len(shown) / seconds if seconds > 0 else 0.0,
        frames=len(shown),
        width=width,
        height=height,
        codec=codec_name(stream),
        container=container_name(container),
        rotation=orientation.degrees,
    )


def _first_orientation(
    stream: VideoStream, timeline: Timeline, container: InputContainer
) -> Orientation:
    """Orientation of the first frame that decodes; raises VideoError(decode_error) if none does."""
    for frame in decode_packets(stream.codec_context, timeline.read()):
        return orientation_of(frame)
    raise VideoError(Reason.DECODE_ERROR, f"{container.name}: no frame can be decoded")
