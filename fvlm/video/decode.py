"""Decode the stored frames of a clip, exactly and with as little work as possible.

The timeline is read without decoding, the frames to store are chosen from it, and then only the
groups of pictures that hold one are decoded, without the pictures that nothing refers to. Every
frame's timestamp is verified; whatever the fast way cannot prove is decoded from the first packet
to the last, with identical results.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from pydantic import Field

from fvlm.core.errors import VideoError
from fvlm.core.params import Params
from fvlm.video.codec import decode_packet, decode_packets, frame_time
from fvlm.video.container import (
    STRICT,
    TOLERANT,
    Timeline,
    codec_name,
    container_name,
    content_sha256,
    open_stream,
    read_timeline,
)
from fvlm.video.geometry import FrameConverter
from fvlm.video.h264 import has_predicted_idr
from fvlm.video.messages import Messages
from fvlm.video.plan import SKIPS_UNREFERENCED, Span, can_plan, plan_spans
from fvlm.video.reasons import Reason
from fvlm.video.sample import choose_frames


class DecodeParams(Params):
    """Section `decode` of params.yaml."""

    num_frames: int = Field(ge=1)  # frames stored per clip
    frame_size: int = Field(ge=1)  # pixels; height and width of a stored frame
    clips_per_shard: int = Field(ge=1)  # mean
    max_failed_fraction: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class DecodedClip:
    """frames: uint8 [T, 3, S, S] RGB. pts_seconds: T times from the clip's first frame."""

    frames: np.ndarray
    pts_seconds: list[float]


def decode_video(
    path: str, *, num_frames: int, size: int, hears_decoder: bool = False
) -> DecodedClip:
    """Decode `num_frames` frames spread over the whole video, each the displayed centre square.

    `hears_decoder` takes what FFmpeg prints as evidence of damage, where stderr is a file: in the
    worker. Raises VideoError with one of the reasons in `fvlm.video.reasons`. Run it in the
    sandboxed worker on files of unknown origin.
    """
    arguments = (path, num_frames, size, hears_decoder)
    try:
        return _decode(*arguments, STRICT)
    except VideoError as error:
        if error.reason != Reason.DECODE_ERROR or not _is_forgivable(path):
            raise
    return _decode(*arguments, TOLERANT)


def _decode(
    path: str, num_frames: int, size: int, hears_decoder: bool, options: dict[str, str]
) -> DecodedClip:
    messages = Messages() if hears_decoder else None
    with open_stream(path, options) as (container, stream):
        timeline = read_timeline(path, container, stream)
        shown = timeline.shown
        chosen = choose_frames(shown, timeline.end, num_frames=num_frames)
        times = [shown[index] for index in chosen]
        converter = FrameConverter(size, stream.sample_aspect_ratio)
        pictures = None
        if can_plan(codec_name(stream), container_name(container)):
            pictures = decode_fast(timeline, stream, times, converter)
        if pictures is not None:
            clip = _clip(pictures, times, shown[0], timeline)
        else:
            messages = Messages() if hears_decoder else None  # forget what the fast way provoked
            clip = decode_all(timeline, stream, converter, num_frames=num_frames)
        # A decoder that gets packets without their references complains: no sign of damage.
        decoder = None if timeline.orphans else stream.codec_context.name
        damage = messages.damage(decoder) if messages is not None else None
    if damage:
        raise VideoError(Reason.DECODE_ERROR, f"{path}: {damage}")
    return clip


def _is_forgivable(path: str) -> bool:
    """Whether errors are to be expected although nothing is damaged.

    In H.264: a recording cut out of a longer one, whose first frames name references that are
    gone, and a keyframe with predicted slices. Every decoder forgives both.
    """
    with open_stream(path, TOLERANT) as (container, stream):
        if codec_name(stream) != "h264":
            return False
        timeline = read_timeline(path, container, stream)
        extradata = stream.codec_context.extradata
        return bool(timeline.orphans) or any(
            packet.is_keyframe and has_predicted_idr(bytes(packet), extradata)
            for packet in timeline.read()
        )


def decode_request(request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Worker entry: {"path", "sha256", "num_frames", "size"} -> ({"pts_seconds"}, {"frames"}).

    Raises VideoError(changed_since_filter) when the file's content is not `sha256`.
    """
    path = request["path"]
    found = content_sha256(path)
    if found != request["sha256"]:
        message = f"{path}: sha256 {found}, the filter saw {request['sha256']}"
        raise VideoError(Reason.CHANGED_SINCE_FILTER, message)
    clip = decode_video(
        path, num_frames=request["num_frames"], size=request["size"], hears_decoder=True
    )
    return {"pts_seconds": clip.pts_seconds}, {"frames": clip.frames}


def clip_metadata(row: Mapping[str, Any], pts_seconds: list[float]) -> dict[str, Any]:
    """What a clip's sample tells besides its frames; `row` is the filter's."""
    told = {name: row[name] for name in ("video_id", "caption", "sha256")}
    return told | {"pts_seconds": pts_seconds}


def decode_fast(
    timeline: Timeline, stream: VideoStream, times: list[int], converter: FrameConverter
) -> list[np.ndarray] | None:
    """The pictures shown at `times`, decoding only what they need.

    None when that is not provably exact, or when the decoder reports anything odd.
    """
    spans = plan_spans(timeline.facts, times, codec=codec_name(stream))
    if spans is None:
        return None
    stops = [span.start for span in spans[1:]] + [len(timeline.facts)]
    packets = enumerate(timeline.read())
    found: dict[int, np.ndarray] = {}
    try:
        for span, stop in zip(spans, stops, strict=True):
            wanted = {timeline.facts[index].time for index in span.targets}
            for frame in _decode_span(stream, packets, span, stop):
                if frame_time(frame) in wanted:
                    found[frame_time(frame)] = converter.convert(frame)
                if wanted <= found.keys():
                    break
            stream.codec_context.flush_buffers()
    except VideoError:
        found.clear()
    stream.codec_context.flush_buffers()
    stream.codec_context.skip_frame = "DEFAULT"
    return [found[time] for time in times] if len(found) == len(times) else None


def _decode_span(
    stream: VideoStream,
    packets: "Iterator[tuple[int, Packet[VideoStream]]]",
    span: Span,
    stop: int,
) -> Iterator[VideoFrame]:
    """Frames from packet `span.start` to `stop`; unreferenced ones only where they are targets."""
    decoder, targets = stream.codec_context, set(span.targets)
    skips = codec_name(stream) in SKIPS_UNREFERENCED
    for index, packet in packets:
        if index >= span.start and index not in span.dropped:
            decoder.skip_frame = "NONREF" if skips and index not in targets else "DEFAULT"
            yield from decode_packet(decoder, packet)
        if index + 1 == stop:
            yield from decode_packet(decoder, None)
            return


def decode_all(
    timeline: Timeline, stream: VideoStream, converter: FrameConverter, *, num_frames: int
) -> DecodedClip:
    """Decode from the first packet to the last and check each frame against the timeline.

    Frames are known by their times: some H.264 streams do not say how far frames are reordered,
    and then the first few come out in another order.
    """
    shown, end = timeline.shown, timeline.end
    for _ in range(2):
        chosen = [shown[i] for i in choose_frames(shown, end, num_frames=num_frames)]
        waiting = Counter(chosen)
        pictures: list[tuple[int, np.ndarray]] = []
        times: list[int] = []
        for frame in decode_packets(stream.codec_context, timeline.read()):
            times.append(frame_time(frame))
            if waiting[times[-1]] > 0:
                waiting[times[-1]] -= 1
                pictures.append((times[-1], converter.convert(frame)))
        if sorted(times) == shown:
            pictures.sort(key=lambda pair: pair[0])
            return _clip([picture for _, picture in pictures], chosen, shown[0], timeline)
        check_delivered(timeline, times)
        shown, end = times, max(end, times[-1] + 1)
        stream.codec_context.flush_buffers()
    raise VideoError(Reason.WRONG_FRAMES, "decoding twice gave different frames")


def check_delivered(timeline: Timeline, times: list[int]) -> None:
    """Raise VideoError unless the delivered frames are those the container declares.

    Two deviations are sound: frames before the first keyframe that nothing can decode, and
    decoders that name other times than a container which has decoding times only.
    """
    declared = timeline.shown
    if times != sorted(times):
        raise VideoError(Reason.WRONG_FRAMES, "frames come out in another order than declared")
    if not all(packet.has_pts for packet in timeline.facts) and len(times) == len(declared):
        return
    first_key = next((p.time for p in timeline.facts if p.is_keyframe), declared[0])
    missing = [time for time in set(declared) - set(times) if time >= first_key]
    if missing or not times:
        message = f"{len(declared)} frames declared, {len(times)} decoded"
        raise VideoError(Reason.MISSING_FRAMES, message)
    if not set(times) <= set(declared) or len(times) > len(declared):
        raise VideoError(Reason.WRONG_FRAMES, "the decoder shows frames at undeclared times")


def _clip(
    pictures: list[np.ndarray], times: list[int], start: int, timeline: Timeline
) -> DecodedClip:
    seconds = [float((time - start) * timeline.time_base) for time in times]
    return DecodedClip(np.stack(pictures), seconds)
