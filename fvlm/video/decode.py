"""Decode the stored frames of a clip, exactly and with as little work as possible.

The timeline is read without decoding, the frames to store are chosen from it, and then only the
groups of pictures that hold one are decoded, without the pictures that nothing refers to. Every
frame's timestamp is verified; whatever the fast way cannot prove is decoded from the first packet
to the last, with identical results.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream
from pydantic import Field

from fvlm.core.errors import VideoError
from fvlm.core.params import Params
from fvlm.shards.footage import hash_footage
from fvlm.video.codec import Shown, decode_packet, packet_of, play
from fvlm.video.container import (
    STRICT,
    TOLERANT,
    codec_name,
    container_name,
    open_stream,
)
from fvlm.video.damage import Messages, has_predicted_idr
from fvlm.video.files import content_sha256
from fvlm.video.geometry import FrameConverter
from fvlm.video.plan import SKIPS_UNREFERENCED, Span, can_plan, plan_spans
from fvlm.video.reasons import Reason
from fvlm.video.sample import choose_frames
from fvlm.video.timeline import Timeline, read_timeline

ALWAYS_PASSING = 3  # failures: in a small folder one slow moment is a large fraction
DISORDER = "frames come out in another order than the container's times"


class DecodeParams(Params):
    """Section `decode` of params.yaml."""

    num_frames: int = Field(ge=1)  # frames stored per clip
    frame_size: int = Field(ge=1)  # pixels; height and width of a stored frame
    clips_per_shard: int = Field(ge=1)  # mean
    max_failed_fraction: float = Field(ge=0, le=1)

    def most_failed(self, videos: int) -> float:
        """How many of the videos may fail; unless the fraction is 0, a few may, but not all."""
        if self.max_failed_fraction == 0:
            return 0
        return max(self.max_failed_fraction * videos, min(ALWAYS_PASSING, videos - 1))


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
    """Worker entry: {"path", "sha256", "num_frames", "size"} -> (facts of the clip, {"frames"}).

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
    facts = {"pts_seconds": clip.pts_seconds, "footage": hash_footage(clip.frames)}
    return facts, {"frames": clip.frames}


def clip_metadata(row: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a clip's sample tells besides its frames: of the filter's row, and of the decoder."""
    return {name: row[name] for name in ("video_id", "caption", "group", "sha256")} | dict(facts)


def decode_fast(
    timeline: Timeline, stream: VideoStream, times: list[int], converter: FrameConverter
) -> list[np.ndarray] | None:
    """The pictures shown at `times`, decoding only what they need.

    None when that is not provably exact, or when the decoder reports anything odd.
    """
    spans = None if timeline.joints else plan_spans(timeline.facts, times, codec=codec_name(stream))
    if spans is None:
        return None
    # The decoder may reorder frames and the times never do: perhaps the container does not know.
    is_doubtful = timeline.ascends and stream.codec_context.has_b_frames
    stops = [span.start for span in spans[1:]] + [len(timeline.facts)]
    packets = enumerate(timeline.read())
    found: dict[int, np.ndarray] = {}
    try:
        for span, stop in zip(spans, stops, strict=True):
            skips = codec_name(stream) in SKIPS_UNREFERENCED and not is_doubtful
            frames = _decode_span(stream, packets, span, stop, skips)
            if is_doubtful:
                frames = _in_decoding_order(frames, timeline, span.start)
            wanted = {timeline.facts[place].time for place in span.targets}
            for place, frame in _in_display_order(frames, timeline):
                if timeline.facts[place].time in wanted:
                    found[timeline.facts[place].time] = converter.convert(frame)
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
    skips: bool,
) -> Iterator[Shown]:
    """Frames from packet `span.start` to `stop`; `skips` unreferenced ones that are no targets."""
    decoder, targets = stream.codec_context, set(span.targets)
    for index, packet in packets:
        if index >= span.start and index not in span.dropped:
            decoder.skip_frame = "NONREF" if skips and index not in targets else "DEFAULT"
            yield from ((packet_of(frame), frame) for frame in decode_packet(decoder, packet))
        if index + 1 == stop:
            yield from ((packet_of(frame), frame) for frame in decode_packet(decoder, None))
            return


def _in_display_order(frames: Iterable[Shown], timeline: Timeline) -> Iterator[Shown]:
    """The frames themselves; raises VideoError(wrong_frames) unless their times ascend."""
    last = None
    for place, frame in frames:
        time = timeline.facts[place].time
        if last is not None and time <= last:
            raise VideoError(Reason.WRONG_FRAMES, DISORDER)
        last = time
        yield place, frame


def _in_decoding_order(frames: Iterable[Shown], timeline: Timeline, start: int) -> Iterator[Shown]:
    """The frames themselves; raises VideoError(wrong_frames) unless one comes out for each."""
    shown = (i for i in range(start, len(timeline.facts)) if timeline.facts[i].is_shown)
    for place, frame in frames:
        if place != next(shown):
            raise VideoError(Reason.WRONG_FRAMES, DISORDER)
        yield place, frame


def decode_all(
    timeline: Timeline, stream: VideoStream, converter: FrameConverter, *, num_frames: int
) -> DecodedClip:
    """Decode from the first packet to the last and check each frame against the timeline.

    Where the times ascend in decoding order, the container may know no other order: frames are
    then shown in turn, the first that the decoder shows at the first time, and so on.
    """
    shown, end = timeline.shown, timeline.end
    for _ in range(2):
        chosen = [shown[i] for i in choose_frames(shown, end, num_frames=num_frames)]
        wanted, pictures, times = set(chosen), dict[int, np.ndarray](), list[int]()
        for turn, (place, frame) in enumerate(play(timeline, stream)):
            fact = timeline.facts[place]
            in_turn = (timeline.ascends or not fact.has_pts) and turn < len(shown)
            times.append(shown[turn] if in_turn else fact.time)
            if times[-1] in wanted:
                pictures[times[-1]] = converter.convert(frame)
        if times == shown:
            return _clip([pictures[time] for time in chosen], chosen, shown[0], timeline)
        check_delivered(timeline, times)
        shown, end = times, max(end, times[-1] + 1)
        stream.codec_context.flush_buffers()
    raise VideoError(Reason.WRONG_FRAMES, "decoding twice gave different frames")


def check_delivered(timeline: Timeline, times: list[int]) -> None:
    """Raise VideoError unless the delivered frames are those the container declares.

    One deviation is sound: early frames that nothing can decode.
    """
    declared = timeline.shown
    if any(a >= b for a, b in pairwise(times)):
        raise VideoError(Reason.WRONG_FRAMES, DISORDER)
    if set(declared) - set(times) - timeline.early or not times:
        message = f"{len(declared)} frames declared, {len(times)} decoded"
        raise VideoError(Reason.MISSING_FRAMES, message)
    if not set(times) <= set(declared):
        raise VideoError(Reason.WRONG_FRAMES, "the decoder shows frames at undeclared times")


def _clip(
    pictures: list[np.ndarray], times: list[int], start: int, timeline: Timeline
) -> DecodedClip:
    seconds = [float((time - start) * timeline.time_base) for time in times]
    return DecodedClip(np.stack(pictures), seconds)
