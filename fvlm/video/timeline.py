"""When the frames of a video are shown: its timeline, read from the packets without decoding.

A container may not know it. Some give decoding times only (AVI, ASF), some none (raw streams), and
where recordings were joined the clock starts again. `Timeline.facts` are in decoding order; the
decoder shows frames in display order. Each packet is stamped with its place in `facts` before it
is decoded, so that a frame tells which packet it comes from, whatever the container says.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from fvlm.core.errors import VideoError
from fvlm.video.container import TOLERANT, codec_name, container_name, open_stream
from fvlm.video.reasons import Reason
from fvlm.video.structure import check_structure

HELD_BYTES = 2**28  # packets of a file up to this size are kept; a larger file is read twice
IN_ORDER = frozenset({"vp8", "vp9", "av1", "mjpeg"})  # codecs that never reorder frames
AVFMT_NOTIMESTAMPS, AVFMT_TS_DISCONT = 0x80, 0x200  # libavformat/avformat.h
# A frame may be decoded this many frames before or after its turn. Source: ITU-T H.264 (A.3.1) and
# H.265 (A.4.1) allow 16 pictures; twice that for fields.
MOST_REORDERED = 32
# A step of the clock that is no pause but another recording. Source: FFmpeg's -dts_delta_threshold.
JUMP_SECONDS = 10
DECODING_TIMES = frozenset({"avi", "asf"})  # formats that do not know when frames are shown
CLOCKED = frozenset({"mpegts", "mpeg"})  # formats whose clock may jump ahead, too


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
    joints: frozenset[int]  # places in `facts` where another recording begins

    def read(self) -> "Iterator[Packet[VideoStream]]":
        """The packets in the order of `facts`, each with its place there as its timestamp."""
        for place, packet in enumerate(self._packets()):
            packet.pts, packet.dts = place, None
            yield packet

    def _packets(self) -> "Iterator[Packet[VideoStream]]":
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

    @cached_property
    def ascends(self) -> bool:
        """Whether frames are shown in decoding order, or the container knows no other order."""
        return all(a.time < b.time for a, b in pairwise(p for p in self.facts if p.is_shown))

    @property
    def early(self) -> set[int]:
        """Times of frames that are shown before the first keyframe of their recording."""
        times: set[int] = set()
        for start, stop in pairwise([0, *sorted(self.joints), len(self.facts)]):
            part = self.facts[start:stop]
            first = next((fact.time for fact in part if fact.is_keyframe), part[0].time)
            times |= {fact.time for fact in part if fact.time < first}
        return times

    @property
    def end(self) -> int:
        """When the last frame disappears, in ticks."""
        return _end([packet for packet in self.facts if packet.is_shown])


def read_timeline(path: str, container: InputContainer, stream: VideoStream) -> Timeline:
    """Read every packet of the stream without decoding; checks it against what is declared.

    Packets that nothing can decode because they refer to what was cut away are left out.
    Raises VideoError: no_frames, no_timestamps, missing_frames, wrong_frames.
    """
    is_declared = check_structure(path, container_name(container))
    packets: list[_Stamps] = []
    held: list[Packet[VideoStream]] = []
    held_bytes = 0
    for packet in video_packets(container, stream):
        packets.append(_stamps(packet, codec_name(stream)))
        held_bytes += packet.size
        if held_bytes <= HELD_BYTES:
            held.append(packet)
    if not any(packet.is_shown for packet in packets):
        raise VideoError(Reason.NO_FRAMES, f"{path}: no frame to show")
    facts, time_base = _clocked(path, container, stream, packets)
    joints = [0]
    if container.format.flags & AVFMT_TS_DISCONT:
        jump = JUMP_SECONDS / time_base if container.format.name in CLOCKED else None
        joints = find_joints([p.dts if p.dts is not None else p.pts for p in packets], jump)
        facts = join(facts, joints)
    # Where another recording begins, the demuxer takes one of the last packets for cut short.
    ends = {joint - back for joint in joints for back in (1, 2)}
    if any(packet.is_corrupt and place not in ends for place, packet in enumerate(packets)):
        raise VideoError(Reason.MISSING_FRAMES, f"{path}: a packet is cut short")
    if is_declared:
        check_declared(path, container, stream, facts)
    orphans = frozenset[int]().union(
        *(_orphans(facts, codec_name(stream), a, b) for a, b in pairwise([*joints, len(facts)]))
    )
    kept = [place for place in range(len(facts)) if place not in orphans]
    timeline = Timeline(
        path,
        [facts[place] for place in kept],
        time_base,
        [held[place] for place in kept] if held_bytes <= HELD_BYTES else None,
        orphans,
        frozenset(sum(place < joint for place in kept) for joint in joints[1:]),
    )
    _check_order(path, timeline, codec_name(stream))
    return timeline


def video_packets(
    container: InputContainer, stream: VideoStream
) -> "Iterator[Packet[VideoStream]]":
    """The stream's packets; the empty one that PyAV adds to flush the decoder is left out."""
    return (packet for packet in container.demux(stream) if packet.size)


class _Stamps(NamedTuple):
    """A packet as the container gives it."""

    pts: int | None
    dts: int | None
    duration: int
    is_keyframe: bool
    is_shown: bool
    is_corrupt: bool


def _stamps(packet: "Packet[VideoStream]", codec: str) -> _Stamps:
    is_hidden = packet.is_discard or (codec in _IS_HIDDEN and _IS_HIDDEN[codec](bytes(packet)))
    flags = packet.is_keyframe, not is_hidden, packet.is_corrupt
    return _Stamps(packet.pts, packet.dts, packet.duration or 0, *flags)


def _is_hidden_vp8(frame: bytes) -> bool:
    """RFC 6386, section 9.1: show_frame."""
    return not frame[0] >> 4 & 1


def _is_hidden_vp9(frame: bytes) -> bool:
    """VP9 bitstream specification, section 7.2: show_existing_frame and show_frame.

    A superframe (annex B) holds several frames, one of them to be shown.
    """
    marker = frame[-1]
    if marker >> 5 == 0b110 and len(frame) > 1:
        length = 2 + ((marker >> 3 & 3) + 1) * ((marker & 7) + 1)
        if len(frame) >= length and frame[-length] == marker:
            return False
    bits = f"{frame[0]:08b}"
    rest = bits[5:] if bits[2:4] == "11" else bits[4:]  # profile 3 has a reserved bit
    return rest[0] == "0" and rest[2] == "0"


_IS_HIDDEN = {"vp8": _is_hidden_vp8, "vp9": _is_hidden_vp9}


def _clocked(
    path: str, container: InputContainer, stream: VideoStream, packets: Sequence[_Stamps]
) -> tuple[list[PacketFacts], Fraction]:
    """Facts and their time base. A raw stream has no clock: its own frame rate gives one."""
    if container.format.flags & AVFMT_NOTIMESTAMPS:
        rate = stream.codec_context.framerate
        if not rate:
            advice = f"wrap it: ffmpeg -framerate RATE -i {path} -c copy {path}.mkv"
            message = f"{path}: a raw stream that does not say its frame rate; {advice}"
            raise VideoError(Reason.NO_TIMESTAMPS, message)
        return [PacketFacts(i, 1, *p[3:5], False) for i, p in enumerate(packets)], 1 / rate
    if not stream.time_base:
        raise VideoError(Reason.NO_TIMESTAMPS, f"{path}: no time base")
    times = [packet.pts if packet.pts is not None else packet.dts for packet in packets]
    if "matroska" in container.format.name:
        times = _before_zero(times, packets)
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        raise VideoError(Reason.NO_TIMESTAMPS, f"{path}: a packet has no timestamp")
    decoding = [packet.dts for packet in packets if packet.dts is not None]
    if container_name(container) in DECODING_TIMES and len(decoding) == len(known):
        # Presentation times that FFmpeg has guessed tell the order at best.
        order = sorted(range(len(known)), key=known.__getitem__)
        for place, time in zip(order, sorted(decoding), strict=True):
            known[place] = time
    return [
        PacketFacts(time, *packet[2:5], packet.pts is not None)
        for time, packet in zip(known, packets, strict=True)
    ], stream.time_base


def _before_zero(times: list[int | None], packets: Sequence[_Stamps]) -> list[int | None]:
    """Times for the frames of Matroska that are shown before zero, for which FFmpeg gives none.

    They follow each other as the frames do that come first after zero. Which of them is which only
    the decoder can tell.
    """
    missing = [place for place, time in enumerate(times) if time is None]
    known = sorted(time for time in times if time is not None)
    if not missing or len(known) < 2 or known[0] < 0 or missing[-1] > len(missing) + MOST_REORDERED:
        return times
    step = packets[missing[0]].duration or known[1] - known[0]
    filled = list(times)
    for turn, place in enumerate(reversed(missing), start=1):
        filled[place] = known[0] - turn * step
    return filled


def find_joints(clock: Sequence[int | None], jump: Fraction | None) -> list[int]:
    """The places where another recording begins, 0 first: the clock goes back, or over `jump`."""
    joints, last = [0], clock[0]
    for place, time in enumerate(clock):
        if time is None:
            continue
        if last is not None and (time < last or (jump is not None and time - last > jump)):
            joints.append(place)
        last = time
    return joints


def join(facts: Sequence[PacketFacts], joints: Sequence[int]) -> list[PacketFacts]:
    """Move each recording so that its first frame appears when the last one before disappears."""
    joined: list[PacketFacts] = []
    for start, stop in pairwise([*joints, len(facts)]):
        part = facts[start:stop]
        shift = _end(joined) - min(fact.time for fact in part) if joined else 0
        joined += [fact._replace(time=fact.time + shift) for fact in part]
    return joined


def _end(facts: Sequence[PacketFacts]) -> int:
    """When the last frame disappears.

    A packet's duration is that of a decoding step. It tells how long the last frame stays where
    nothing is reordered; elsewhere that is no longer than the frame before stayed.
    """
    last = max(facts, key=lambda fact: fact.time)
    before = max((fact.time for fact in facts if fact.time < last.time), default=None)
    spacing = last.time - before if before is not None else 1
    if not last.duration:
        return last.time + spacing
    is_reordered = any(a.time > b.time for a, b in pairwise(facts))
    return last.time + (min(last.duration, spacing) if is_reordered else last.duration)


def _orphans(facts: list[PacketFacts], codec: str, start: int, stop: int) -> frozenset[int]:
    """Packets at the start of a recording that was cut out of a longer one.

    Those before the first keyframe; in H.264 also those that follow it but are shown before it.
    (Decoders of other codecs drop these themselves, or can decode some of them.)
    """
    keys = [place for place in range(start, stop) if facts[place].is_keyframe]
    if not keys:
        return frozenset()
    orphans = set(range(start, keys[0]))
    if codec == "h264":
        second = keys[1] if len(keys) > 1 else stop
        orphans |= {i for i in range(keys[0], second) if facts[i].time < facts[keys[0]].time}
    return frozenset(orphans)


def _check_order(path: str, timeline: Timeline, codec: str) -> None:
    """Raise VideoError where the times cannot be those at which a player shows the frames."""
    shown = [packet.time for packet in timeline.facts if packet.is_shown]
    if not shown:
        raise VideoError(Reason.NO_FRAMES, f"{path}: no frame after the first keyframe")
    if len(set(shown)) < len(shown):
        raise VideoError(Reason.WRONG_FRAMES, f"{path}: two frames are shown at the same time")
    if codec in IN_ORDER and shown != timeline.shown:
        raise VideoError(Reason.WRONG_FRAMES, f"{path}: timestamps run backwards")
    ranks = {time: rank for rank, time in enumerate(timeline.shown)}
    if any(abs(ranks[time] - place) > MOST_REORDERED for place, time in enumerate(shown)):
        message = f"{path}: the clock starts again, or runs backwards, inside the film"
        raise VideoError(Reason.WRONG_FRAMES, message)


def check_declared(
    path: str, container: InputContainer, stream: VideoStream, facts: list[PacketFacts]
) -> None:
    """A container that declares more than it delivers is truncated, otherwise damaged."""
    kind, indexed = container_name(container), len(stream.index_entries)
    if kind == "mp4" and len(facts) < indexed:
        message = f"{path}: {indexed} frames declared, {len(facts)} found"
        raise VideoError(Reason.MISSING_FRAMES, message)
    entries = stream.index_entries
    if kind == "mp4" and indexed and entries[0].is_keyframe and not facts[0].is_keyframe:
        message = f"{path}: the first frame is declared as a keyframe and is none"
        raise VideoError(Reason.DECODE_ERROR, message)
    tick = float(stream.time_base or 0)
    shown = [p for p in facts if p.is_shown]
    spans = [_span(facts) * tick, _span(shown) * tick]  # with and without what an edit list hides
    declared = 0.0
    if kind in ("mp4", "avi"):
        declared = (stream.duration or 0) * tick
    elif kind in ("mkv", "webm"):
        declared = _tagged_seconds(stream.metadata.get("DURATION", ""))
        spans.append(_end(facts) * tick)  # counted from zero
    slack = max(0.3, 0.05 * declared, 3 * spans[0] / len(facts))
    if not declared or any(abs(declared - span) <= slack for span in spans):
        return
    if spans[0] < declared:
        message = f"{path}: {declared:.2f} s declared, {spans[0]:.2f} s found"
        raise VideoError(Reason.MISSING_FRAMES, message)
    if not (kind == "mp4" and len(facts) == indexed):  # all frames are there: the header is wrong
        message = f"{path}: {declared:.2f} s declared, {spans[0]:.2f} s found"
        raise VideoError(Reason.WRONG_FRAMES, message)


def _span(facts: list[PacketFacts]) -> int:
    """From the first appearance to the last disappearance, in ticks."""
    return _end(facts) - min(p.time for p in facts)


def _tagged_seconds(tag: str) -> float:
    """Matroska's DURATION tag, `HH:MM:SS.fraction`; 0 when there is none."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", tag.strip("\0 "))
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else 0.0
