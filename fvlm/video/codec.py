"""The decoder with every check switched on: an error or a doubtful frame raises."""

from collections.abc import Iterator, Sequence

import av
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from fvlm.core.errors import VideoError
from fvlm.video.reasons import Reason, in_words
from fvlm.video.timeline import Timeline

Shown = tuple[int, VideoFrame]  # the place of its packet in the timeline, and the frame


def decode_packet(
    decoder: VideoCodecContext, packet: "Packet[VideoStream] | None"
) -> list[VideoFrame]:
    """The frames that this packet completes; None drains the decoder.

    Raises VideoError(decode_error) for damage, VideoError(out_of_memory) at the memory limit.
    """
    try:
        frames = decoder.decode(packet)
    except EOFError:  # a decoder that was drained before
        return []
    except MemoryError as error:
        raise VideoError(Reason.OUT_OF_MEMORY, f"the decoder ran out of memory: {error}") from None
    except av.InvalidDataError:
        raise VideoError(Reason.DECODE_ERROR, "damaged picture") from None
    except Exception as error:  # the bindings raise more than FFmpeg's errors
        raise VideoError(Reason.DECODE_ERROR, f"picture not decoded: {in_words(error)}") from None
    if any(frame.is_corrupt for frame in frames):
        raise VideoError(Reason.DECODE_ERROR, "picture that the decoder marks as damaged")
    return frames


def packet_of(frame: VideoFrame) -> int:
    """The packet that holds the frame, by the stamp that `Timeline.read` gave it.

    Raises VideoError(no_timestamps) where the decoder has lost it.
    """
    if frame.pts is None:
        raise VideoError(Reason.NO_TIMESTAMPS, "a decoded frame has lost its timestamp")
    return frame.pts


def play(timeline: Timeline, stream: VideoStream) -> Iterator[Shown]:
    """All frames as the decoder shows them; it starts anew where recordings are joined."""
    decoder, place = stream.codec_context, 0
    try:
        for place, packet in enumerate(timeline.read()):
            if place in timeline.joints:
                yield from ((packet_of(frame), frame) for frame in decode_packet(decoder, None))
                decoder.flush_buffers()
            yield from ((packet_of(frame), frame) for frame in decode_packet(decoder, packet))
        yield from ((packet_of(frame), frame) for frame in decode_packet(decoder, None))
    except VideoError as error:
        if error.reason != Reason.DECODE_ERROR:
            raise
        seconds = (timeline.facts[place].time - timeline.shown[0]) * timeline.time_base
        raise VideoError(error.reason, f"{error} at {float(seconds):.1f} s") from None


def time_of(timeline: Timeline, turn: int, place: int, shown: Sequence[int]) -> int:
    """When the frame is shown that the decoder shows as number `turn`, of packet `place`.

    Where the times ascend in decoding order, the container may know no other order: frames are then
    shown in turn, the first one at the first of the times `shown`, and so on.
    """
    fact = timeline.facts[place]
    in_turn = (timeline.ascends or not fact.has_pts) and turn < len(shown)
    return shown[turn] if in_turn else fact.time
