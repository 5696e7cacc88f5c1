"""Facts about a video from its container and the first picture; all other frames stay encoded."""

from dataclasses import asdict
from typing import Any

from av.container import InputContainer
from av.video.stream import VideoStream

from fvlm.core.errors import VideoError
from fvlm.video.codec import play
from fvlm.video.container import (
    TOLERANT,
    codec_name,
    container_name,
    open_stream,
)
from fvlm.video.facts import VideoFacts
from fvlm.video.files import content_sha256
from fvlm.video.geometry import Orientation, orientation_of
from fvlm.video.reasons import Reason
from fvlm.video.timeline import Timeline, read_timeline


def probe_video(path: str) -> VideoFacts:
    """Read a video's facts; decodes only the first frame, which carries the rotation.

    Raises VideoError with one of the reasons in `fvlm.video.reasons`. Run it in the sandboxed
    worker on files of unknown origin.
    """
    with open_stream(path, TOLERANT) as (container, stream):
        timeline = read_timeline(path, container, stream)
        orientation = _first_orientation(stream, timeline)
        return _facts(container, stream, timeline, orientation)


def probe_request(request: dict[str, Any]) -> dict[str, Any]:
    """Worker entry: {"path"} -> the VideoFacts as a dict, and "sha256" of the content."""
    facts = asdict(probe_video(request["path"]))
    return {**facts, "sha256": content_sha256(request["path"])}


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
        video_stream=[s.index for s in container.streams.video].index(stream.index) + 1,
        video_streams=len(container.streams.video),
    )


def _first_orientation(stream: VideoStream, timeline: Timeline) -> Orientation:
    """Orientation of the first frame that decodes; raises VideoError(decode_error) if none does."""
    for _, frame in play(timeline, stream):
        return orientation_of(frame)
    raise VideoError(Reason.DECODE_ERROR, f"{timeline.path}: no frame can be decoded")
