"""Open a video of unknown origin and read its timeline without decoding.

Nothing here trusts the file: every exception of the demuxer becomes a VideoError. Callers run it
in the sandboxed worker (`fvlm.video.worker`), because FFmpeg itself may crash or never return.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from fvlm.core.errors import VideoError
from fvlm.video.reasons import Reason
from fvlm.video.structure import check_structure

MAX_PIXELS = 8192 * 4320  # per picture; 8K video passes, a decompression bomb does not
HELD_BYTES = 2**28  # packets of a file up to this size are kept; a larger file is read twice
IN_ORDER = frozenset({"vp8", "vp9", "av1", "mjpeg"})  # codecs that never reorder frames
# FFmpeg's names of formats that hold the video themselves: playlists (concat, hls, dash, sdp, ..)
# and names that are patterns (image2) would read other files than the one that was hashed.
CONTAINERS = (
    *("mov", "matroska", "avi", "flv", "mpegts", "mpeg", "mpegvideo", "ogg", "asf", "rm", "mxf"),
    *("gxf", "nut", "dv", "wtv", "nsv", "swf", "ivf", "obu", "h261", "h263", "h264", "hevc", "vvc"),
    *("m4v", "vc1", "dirac", "mjpeg", "gif", "apng", "yuv4mpegpipe"),
)
# Report damage instead of guessing a picture. Source: FFmpeg's `-err_detect`.
STRICT = {
    "err_detect": "crccheck+bitstream+buffer+explode",
    "max_pixels": str(MAX_PIXELS),
    "threads": "1",
    "format_whitelist": ",".join(CONTAINERS),
}
# Find damage, but do not refuse what decoders forgive.
TOLERANT = {**STRICT, "err_detect": "crccheck+bitstream+buffer"}


def codec_name(stream: VideoStream) -> str:
    """FFmpeg's name of the format, whichever decoder reads it (`av1`, not `libdav1d`)."""
    return stream.codec_context.codec.canonical_name


def content_sha256(path: str) -> str:
    """Hex sha256 of the file; raises VideoError(not_a_file) when it has vanished."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - names may hold bytes that are not UTF-8
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise VideoError(Reason.NOT_A_FILE, f"{path}: {error}") from None


def container_name(container: InputContainer) -> str:
    """One short name for FFmpeg's list of aliases."""
    names = container.format.name.split(",")
    if "mp4" in names:
        return "mp4"
    if "webm" in names:
        return "webm" if container.name.lower().endswith(".webm") else "mkv"
    return names[0]


@contextmanager
def open_stream(path: str, options: dict[str, str]) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open `path` and choose its video stream; other streams are not even read.

    `options` is STRICT or TOLERANT. Raises VideoError for everything that is not a readable video;
    errors of the demuxer inside the block are translated too.
    """
    check_file(path)
    try:
        with _open(path, options) as container:
            stream = _video_stream(path, container)
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = Discard.all
            stream.codec_context.options = options
            yield container, stream
    except VideoError:
        raise
    except MemoryError as error:
        raise VideoError(Reason.OUT_OF_MEMORY, f"{path}: {error}") from None
    except Exception as error:  # FFmpeg's bindings raise IndexError, UnicodeDecodeError, ...
        message = f"{path}: {type(error).__name__}: {error}"
        raise VideoError(Reason.UNREADABLE, message) from None


def _open(path: str, options: dict[str, str]) -> InputContainer:
    try:
        # `file:` keeps FFmpeg from taking a name such as `concat:a|b` for a protocol.
        return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except av.ArgumentError:  # FFmpeg's answer to a format that is not on the list
        message = f"{path} is a playlist, or no container of videos that is known"
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


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    """The first video stream that is not an attached picture, with a decoder and a sane size."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(Reason.NO_VIDEO_STREAM, f"{path} has no video stream")
    stream = streams[0]
    # PyAV has no codec context, and no size, for a stream whose decoder is unknown.
    width, height = (0, 0) if stream.codec_context is None else _size(path, stream)
    if width * height > MAX_PIXELS:
        message = f"{path}: {width}x{height}, at most {MAX_PIXELS} pixels"
        raise VideoError(Reason.TOO_MANY_PIXELS, message)
    if stream.codec_context is None or not stream.width or not stream.height:
        raise VideoError(Reason.UNKNOWN_CODEC, f"{path}: no decoder, or no picture size")
    return stream


def _size(path: str, stream: VideoStream) -> tuple[int, int]:
    """Width and height; a decoder that finds them too large sets zeros, so then none is opened."""
    if stream.width and stream.height:
        return stream.width, stream.height
    with _open(path, {**TOLERANT, "codec_whitelist": "none"}) as container:
        declared = next(s for s in container.streams.video if s.index == stream.index)
        return declared.width, declared.height


class PacketFacts(NamedTuple):
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
    orphans: frozenset[int]  # packets that refer to what is not there, left out everywhere

    def read(self) -> "Iterator[Packet[VideoStream]]":
        """The packets themselves, in the order of `facts`."""
        if self.held is not None:
            yield from self.held
            return
        with open_stream(self.path, TOLERANT) as (container, stream):
            for index, packet in enumerate(video_packets(container, stream)):
                if index not in self.orphans:
                    yield packet

    @cached_property
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

    Packets that nothing can decode because they refer to what was cut away are left out.
    Raises VideoError: no_frames, no_timestamps, missing_frames, wrong_frames.
    """
    check_structure(path, container_name(container))
    facts: list[PacketFacts] = []
    held: list[Packet[VideoStream]] | None = []
    held_bytes, is_vp8 = 0, codec_name(stream) == "vp8"
    for packet in video_packets(container, stream):
        if packet.is_corrupt:
            raise VideoError(Reason.MISSING_FRAMES, f"{container.name}: a packet is cut short")
        facts.append(_packet_facts(packet, is_vp8))
        held_bytes += packet.size
        if held is not None:
            held.append(packet)
            if held_bytes > HELD_BYTES:
                held = None
    if not any(packet.is_shown for packet in facts):
        raise VideoError(Reason.NO_FRAMES, f"{container.name}: no frame to show")
    if not stream.time_base:
        raise VideoError(Reason.NO_TIMESTAMPS, f"{container.name}: no time base")
    check_declared(container, stream, facts)
    orphans = _orphans(facts, codec_name(stream))
    kept = [packet for index, packet in enumerate(facts) if index not in orphans]
    if not any(packet.is_shown for packet in kept):
        raise VideoError(Reason.NO_FRAMES, f"{container.name}: no frame after the first keyframe")
    if held is not None:
        held = [packet for index, packet in enumerate(held) if index not in orphans]
    return Timeline(path, kept, stream.time_base, held, orphans)


def _orphans(facts: list[PacketFacts], codec: str) -> frozenset[int]:
    """Packets at the start of a recording that was cut out of a longer one.

    Those before the first keyframe; in H.264 also those that follow it but are shown before it.
    (Decoders of other codecs drop these themselves, or can decode some of them.)
    """
    keys = [index for index, packet in enumerate(facts) if packet.is_keyframe]
    if not keys:
        return frozenset()
    orphans = set(range(keys[0]))
    if codec == "h264":
        second = keys[1] if len(keys) > 1 else len(facts)
        orphans |= {i for i in range(keys[0], second) if facts[i].time < facts[keys[0]].time}
    return frozenset(orphans)


def video_packets(
    container: InputContainer, stream: VideoStream
) -> "Iterator[Packet[VideoStream]]":
    """The stream's packets; the empty one that PyAV adds to flush the decoder is left out."""
    return (packet for packet in container.demux(stream) if packet.size)


def _packet_facts(packet: "Packet[VideoStream]", is_vp8: bool) -> PacketFacts:
    pts, dts = packet.pts, packet.dts
    time = pts if pts is not None else dts  # some AVI files have decoding times only
    if time is None:
        raise VideoError(Reason.NO_TIMESTAMPS, "a packet has no timestamp")
    is_hidden = is_vp8 and not bytes(packet)[0] >> 4 & 1  # RFC 6386, section 9.1: show_frame
    return PacketFacts(
        time=time,
        duration=packet.duration or 0,
        is_keyframe=packet.is_keyframe,
        is_shown=not (packet.is_discard or is_hidden),
        has_pts=pts is not None,
    )


def check_declared(
    container: InputContainer, stream: VideoStream, facts: list[PacketFacts]
) -> None:
    """A container that declares more than it delivers is truncated, otherwise damaged."""
    kind, indexed = container_name(container), len(stream.index_entries)
    if kind == "mp4" and len(facts) < indexed:
        message = f"{container.name}: {indexed} frames declared, {len(facts)} found"
        raise VideoError(Reason.MISSING_FRAMES, message)
    entries = stream.index_entries
    if kind == "mp4" and indexed and entries[0].is_keyframe and not facts[0].is_keyframe:
        message = f"{container.name}: the first frame is declared as a keyframe and is none"
        raise VideoError(Reason.DECODE_ERROR, message)
    if codec_name(stream) in IN_ORDER and any(a.time > b.time for a, b in pairwise(facts)):
        raise VideoError(Reason.WRONG_FRAMES, f"{container.name}: timestamps run backwards")
    tick = float(stream.time_base or 0)
    shown = [p for p in facts if p.is_shown]
    spans = [_span(facts) * tick, _span(shown) * tick]  # with and without what an edit list hides
    declared = 0.0
    if kind in ("mp4", "avi"):
        declared = (stream.duration or 0) * tick
    elif kind in ("mkv", "webm"):
        declared = _tagged_seconds(stream.metadata.get("DURATION", ""))
        spans.append(max(p.time + p.duration for p in facts) * tick)  # counted from zero
    slack = max(0.3, 0.05 * declared, 3 * spans[0] / len(facts))
    if declared and all(abs(declared - span) > slack for span in spans):
        reason = Reason.MISSING_FRAMES if spans[0] < declared else Reason.WRONG_FRAMES
        message = f"{container.name}: {declared:.2f} s declared, {spans[0]:.2f} s found"
        raise VideoError(reason, message)


def _span(facts: list[PacketFacts]) -> int:
    """From the first appearance to the last disappearance, in ticks."""
    return max(p.time + p.duration for p in facts) - min(p.time for p in facts)


def _tagged_seconds(tag: str) -> float:
    """Matroska's DURATION tag, `HH:MM:SS.fraction`; 0 when there is none."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tag.strip("\0 "))
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else 0.0
