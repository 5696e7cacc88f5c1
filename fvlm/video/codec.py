"""The decoder with every check switched on: an error or a doubtful frame raises."""

from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from fvlm.errors import VideoError
from fvlm.video.reasons import Reason


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
    except Exception as error:  # the bindings raise more than FFmpeg's errors
        raise VideoError(Reason.DECODE_ERROR, f"{type(error).__name__}: {error}") from None
    if any(frame.is_corrupt for frame in frames):
        raise VideoError(Reason.DECODE_ERROR, "the decoder marks a frame as corrupt")
    return frames


def packet_of(frame: VideoFrame) -> int:
    """The packet that holds the frame, by the stamp that `Timeline.read` gave it.

    Raises VideoError(no_timestamps) where the decoder has lost it.
    """
    if frame.pts is None:
        raise VideoError(Reason.NO_TIMESTAMPS, "a decoded frame has lost its timestamp")
    return frame.pts
