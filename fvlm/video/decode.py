"""Decode the stored frames of a clip, exactly and with as little work as possible.

The timeline is read without decoding, the frames to store are chosen from it, and then only the
groups of pictures that hold one are decoded, without the pictures that nothing refers to. Every
frame's timestamp is verified; whatever the fast way cannot prove is decoded from the first packet
to the last, with identical results.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream

from fvlm.core.errors import VideoError
from fvlm.shards.footage import hash_footage
from fvlm.video.clips import ClipSpan
from fvlm.video.codec import Shown, decode_packet, packet_of, play, time_of
from fvlm.video.container import (
    STRICT,
    TOLERANT,
    codec_name,
    container_name,
    open_stream,
)
from fvlm.video.damage import Messages, has_predicted_idr
from fvlm.video.files import check_content
from fvlm.video.geometry import FrameConverter
from fvlm.video.plan import SKIPS_UNREFERENCED, Span, can_plan, plan_spans
from fvlm.video.reasons import Reason
from fvlm.video.sample import choose_frames
from fvlm.video.timeline import Timeline, read_timeline

DISORDER = "frames come out in another order than the container's times"


@dataclass(frozen=True)
class DecodedClip:
    """frames: uint8 [T,3,S,S] RGB. pts_seconds: T times from the video's first frame."""

    frames: np.ndarray
    pts_seconds: list[float]


@dataclass(frozen=True)
class Wanted:
    """What to decode of a video: `num_frames` frames spread over each clip.

    clips: [start, end) in seconds from the first frame; None: to the end of the last one.
    """

    clips: Sequence[tuple[float, float | None]]
    num_frames: int

    def choose(
        self, timeline: Timeline, shown: list[int], end: int
    ) -> list[list[int] | VideoError]:
        """The times in ticks of each clip's frames, of a video that shows frames at `shown`."""
        return [self._choose(timeline.time_base, shown, end, *clip) for clip in self.clips]

    def _choose(
        self, time_base: Fraction, shown: list[int], last: int, start: float, end: float | None
    ) -> list[int] | VideoError:
        begin = shown[0] + Fraction(start) / time_base
        stop = Fraction(last)
        if end is not None:
            stop = min(stop, shown[0] + Fraction(end) / time_base)
        try:
            chosen = choose_frames(shown, stop, num_frames=self.num_frames, start=begin)
        except VideoError as error:
            return error
        return [shown[index] for index in chosen]


def decode_video(
    path: str,
    *,
    num_frames: int,
    size: int,
    start: float = 0.0,
    end: float | None = None,
    hears_decoder: bool = False,
) -> DecodedClip:
    """Decode `num_frames` frames spread over a video, or over its seconds from `start` to `end`.

    Each is the displayed centre square. Raises VideoError with one of the reasons in
    `fvlm.video.reasons`. Run it in the sandboxed worker on files of unknown origin.
    """
    wanted = Wanted([(start, end)], num_frames)
    (clip,) = decode_clips(path, wanted, size=size, hears_decoder=hears_decoder)
    if isinstance(clip, VideoError):
        raise clip
    return clip


def decode_clips(
    path: str, wanted: Wanted, *, size: int, hears_decoder: bool = False
) -> list[DecodedClip | VideoError]:
    """Decode several clips of a video in one go; VideoError: one that has too few frames.

    `hears_decoder` takes what FFmpeg prints as evidence of damage, where stderr is a file: in the
    worker. Raises VideoError where the video cannot be used.
    """
    try:
        return _decode(path, wanted, size, hears_decoder, STRICT)
    except VideoError as error:
        if error.reason != Reason.DECODE_ERROR or not _is_forgivable(path):
            raise
    return _decode(path, wanted, size, hears_decoder, TOLERANT)


def _decode(
    path: str, wanted: Wanted, size: int, hears_decoder: bool, options: dict[str, str]
) -> list[DecodedClip | VideoError]:
    messages = Messages() if hears_decoder else None
    with open_stream(path, options) as (container, stream):
        timeline = read_timeline(path, container, stream)
        chosen = wanted.choose(timeline, timeline.shown, timeline.end)
        times = _all_times(chosen)
        if not times:
            return [clip for clip in chosen if isinstance(clip, VideoError)]
        converter = FrameConverter(size, stream.sample_aspect_ratio)
        pictures = None
        if can_plan(codec_name(stream), container_name(container)):
            pictures = decode_fast(timeline, stream, times, converter)
        if pictures is not None:
            clips = _clips(chosen, pictures, timeline.shown[0], timeline)
        else:
            messages = Messages() if hears_decoder else None  # forget what the fast way provoked
            clips = decode_all(timeline, stream, converter, wanted)
        # A decoder that gets packets without their references complains: no sign of damage.
        decoder = None if timeline.orphans else stream.codec_context.name
        damage = messages.damage(decoder) if messages is not None else None
    if damage:
        raise VideoError(Reason.DECODE_ERROR, f"{path}: {damage}")
    return clips


def _all_times(chosen: Iterable[list[int] | VideoError]) -> list[int]:
    """The times of all clips, ascending; clips may share frames."""
    return sorted({time for times in chosen if isinstance(times, list) for time in times})


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
    """Worker entry: {"path", "sha256", "num_frames", "size", "clips": [[start, end]]} -> clips.

    Returns ({"clips": an object a clip}, {"frames": uint8 [those that could be decoded,T,3,S,S]}).
    An object has what is known of a clip, or `reason` and `message` where it has too few frames.
    Raises VideoError where the video cannot be used or no clip has enough frames, and
    VideoError(changed_since_filter) when the file's content is not `sha256`.
    """
    path = check_content(request)
    wanted = Wanted([(start, end) for start, end in request["clips"]], request["num_frames"])
    clips = decode_clips(path, wanted, size=request["size"], hears_decoder=True)
    found = [clip.frames for clip in clips if isinstance(clip, DecodedClip)]
    for clip in clips if not found else ():
        assert isinstance(clip, VideoError)
        raise clip
    return {"clips": [_facts(clip) for clip in clips]}, {"frames": np.stack(found)}


def _facts(clip: DecodedClip | VideoError) -> dict[str, Any]:
    if isinstance(clip, VideoError):
        return {"reason": str(clip.reason), "message": str(clip)}
    return {"pts_seconds": clip.pts_seconds, "footage": hash_footage(clip.frames)}


def clip_metadata(
    row: Mapping[str, Any], span: ClipSpan, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What a clip's sample tells besides its frames: of the filter's row, and of the decoder.

    start, end: seconds from the video's first frame.
    """
    known = {name: row[name] for name in ("video_id", "group", "sha256")}
    return known | {"start": span[0], "end": span[1]} | dict(facts)


def decode_fast(
    timeline: Timeline, stream: VideoStream, times: list[int], converter: FrameConverter
) -> dict[int, np.ndarray] | None:
    """The pictures shown at `times`, by time, decoding only what they need.

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
    return found if len(found) == len(times) else None


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
    timeline: Timeline, stream: VideoStream, converter: FrameConverter, wanted: Wanted
) -> list[DecodedClip | VideoError]:
    """Decode from the first packet to the last and check each frame against the timeline."""
    shown, end = timeline.shown, timeline.end
    for _ in range(2):
        chosen = wanted.choose(timeline, shown, end)
        kept, pictures, times = set(_all_times(chosen)), dict[int, np.ndarray](), list[int]()
        for turn, (place, frame) in enumerate(play(timeline, stream)):
            times.append(time_of(timeline, turn, place, shown))
            if times[-1] in kept:
                pictures[times[-1]] = converter.convert(frame)
        if times == shown:
            return _clips(chosen, pictures, shown[0], timeline)
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


def _clips(
    chosen: list[list[int] | VideoError],
    pictures: Mapping[int, np.ndarray],
    first: int,
    timeline: Timeline,
) -> list[DecodedClip | VideoError]:
    """The clips of the chosen times; those without stay what they are."""

    def clip(times: list[int]) -> DecodedClip:
        seconds = [float((time - first) * timeline.time_base) for time in times]
        return DecodedClip(np.stack([pictures[time] for time in times]), seconds)

    return [clip(times) if isinstance(times, list) else times for times in chosen]
