"""Open a video of unknown origin and read its timeline without decoding.

Nothing here trusts the file: every exception of the demuxer becomes a VideoError. Callers run it
in the sandboxed worker (`fvlm.video.worker`), because FFmpeg itself may crash or never return.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from fvlm.errors import VideoError
from fvlm.video.reasons import Reason

MAX_PIXELS = 8192 * 4320  # per picture; 8K video passes, a decompression bomb does not
HELD_BYTES = 2**28  # packets of a file up to this size are kept; a larger file is read twice
# Report damage instead of guessing a picture. Source: FFmpeg's `-err_detect`.
STRICT = {"err_detect": "crccheck+bitstream+buffer+explode", "threads": "1"}


def codec_name(stream: VideoStream) -> str:
    """FFmpeg's name of the format, whichever decoder reads it (`av1`, not `libdav1d`)."""
    return stream.codec_context.codec.canonical_name


def container_name(container: InputContainer) -> str:
    """One short name for FFmpeg's list of aliases."""
    names = container.format.name.split(",")
    if "mp4" in names:
        return "mp4"
    if "webm" in names:
        return "webm" if container.name.lower().endswith(".webm") else "mkv"
    return names[0]


@contextmanager
def open_stream(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open `path` and choose its video stream; other streams are not even read.

    Raises VideoError for everything that is not a readable video; errors of the demuxer inside
    the block are translated too.
    """
    check_file(path)
    try:
        # `file:` keeps FFmpeg from taking a name such as `concat:a|b` for a protocol.
        with av.open(f"file:{path}", options=STRICT, metadata_errors="replace") as container:
            stream = _video_stream(container)
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = Discard.all
            stream.codec_context.thread_count = 1
            stream.codec_context.options = STRICT
            yield container, stream
    except VideoError:
        raise
    except MemoryError as error:
        raise VideoError(Reason.OUT_OF_MEMORY, f"{path}: {error}") from None
    except Exception as error:  # FFmpeg's bindings raise IndexError, UnicodeDecodeError, ...
        message = f"{path}: {type(error).__name__}: {error}"
        raise VideoError(Reason.UNREADABLE, message) from None


def check_file(path: str) -> None:
    """Raise VideoError unless `path` is a regular file with content; opens nothing."""
    try:
        facts = os.stat(path)  # noqa: PTH116 - names may hold bytes that are not UTF-8
    except (OSError, ValueError) as error:
        raise VideoError(Reason.NOT_A_FILE, f"{path}: {error}") from None
    if not stat.S_ISREG(facts.st_mode):
        raise VideoError(Reason.NOT_A_FILE, f"{path} is not a regular file")
    if facts.st_size == 0:
        raise VideoError(Reason.EMPTY_FILE, f"{path} is empty")


def _video_stream(container: InputContainer) -> VideoStream:
    """The first video stream that is not an attached picture, with a decoder and a sane size."""
    name = container.name
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(Reason.NO_VIDEO_STREAM, f"{name} has no video stream")
    stream = streams[0]
    # PyAV has no codec context for a stream whose decoder is unknown.
    if stream.codec_context is None or not stream.width or not stream.height:
        raise VideoError(Reason.UNKNOWN_CODEC, f"{name}: no decoder, or no picture size")
    pixels = stream.width * stream.height
    if pixels > MAX_PIXELS:
        size = f"{stream.width}x{stream.height}"
        raise VideoError(Reason.TOO_MANY_PIXELS, f"{name}: {size}, at most {MAX_PIXELS} pixels")
    return stream


@dataclass(frozen=True)
class PacketFacts:
    """What one packet says about its frame; times in ticks of the stream's time base."""

    time: int
    duration: int
    is_keyframe: bool
    is_shown: bool
    has_pts: bool  # else `time` is the decoding time


@dataclass(frozen=True)
class Timeline:
    """All packets of the video stream, in the order in which they are decoded."""

    path: str
    facts: list[PacketFacts]
    time_base: Fraction
    held: "list[Packet[VideoStream]] | None"  # None: too large to keep, read the file again

    def read(self) -> "Iterator[Packet[VideoStream]]":
        """The packets themselves, in the order of `facts`."""
        if self.held is not None:
            yield from self.held
            return
        with open_stream(self.path) as (container, stream):
            yield from video_packets(container, stream)

    @property
    def shown(self) -> list[int]:
        """Times at which frames appear, ascending, in ticks."""
        return sorted(packet.time for packet in self.facts if packet.is_shown)

    @property
    def end(self) -> int:
        """When the last frame disappears, in ticks."""
        shown = self.shown
        last = max((p for p in self.facts if p.is_shown), key=lambda p: p.time)
        spacing = (shown[-1] - shown[0]) // (len(shown) - 1) if len(shown) > 1 else 0
        return last.time + (last.duration or max(spacing, 1))


def read_timeline(path: str, container: InputContainer, stream: VideoStream) -> Timeline:
    """Read every packet of the stream without decoding; checks it against what is declared.

    Raises VideoError: no_frames, no_timestamps, missing_frames.
    """
    facts: list[PacketFacts] = []
    held: list[Packet[VideoStream]] | None = []
    held_bytes = 0
    for packet in video_packets(container, stream):
        if packet.is_corrupt:
            raise VideoError(Reason.MISSING_FRAMES, f"{container.name}: a packet is cut short")
        facts.append(_packet_facts(packet, stream))
        held_bytes += packet.size
        if held is not None:
            held.append(packet)
            if held_bytes > HELD_BYTES:
                held = None
    if not any(packet.is_shown for packet in facts):
        raise VideoError(Reason.NO_FRAMES, f"{container.name}: no frame to show")
    if stream.time_base is None:
        raise VideoError(Reason.NO_TIMESTAMPS, f"{container.name}: no time base")
    timeline = Timeline(path, facts, stream.time_base, held)
    _check_declared(container, stream, timeline)
    return timeline


def video_packets(
    container: InputContainer, stream: VideoStream
) -> "Iterator[Packet[VideoStream]]":
    """The stream's packets; the empty one that PyAV adds to flush the decoder is left out."""
    return (packet for packet in container.demux(stream) if packet.size)


def _packet_facts(packet: "Packet[VideoStream]", stream: VideoStream) -> PacketFacts:
    time = packet.pts if packet.pts is not None else packet.dts  # AVI has decoding times only
    if time is None:
        raise VideoError(Reason.NO_TIMESTAMPS, "a packet has no timestamp")
    hidden = stream.codec_context.name.endswith("vp8") and not bytes(packet)[0] >> 4 & 1
    return PacketFacts(
        time=time,
        duration=packet.duration or 0,
        is_keyframe=packet.is_keyframe,
        is_shown=not packet.is_discard and not hidden,
        has_pts=packet.pts is not None,
    )


def _check_declared(container: InputContainer, stream: VideoStream, timeline: Timeline) -> None:
    """A container that declares more than it delivers is truncated."""
    declared, found = len(stream.index_entries), len(timeline.facts)
    if "mp4" in container.format.name and found < declared:
        message = f"{container.name}: {declared} frames declared, {found} found"
        raise VideoError(Reason.MISSING_FRAMES, message)
