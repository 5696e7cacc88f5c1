"""Which packets have to be decoded to get some frames: pure arithmetic on packet facts.

A random access point is a packet where decoding may start. A *leading* packet follows it in
decoding order but is shown before it, and may refer to what came before (an open group of
pictures).
"""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from fvlm.video.timeline import PacketFacts

# Codecs whose skipping of unreferenced frames leaves all other frames bit-identical.
SKIPS_UNREFERENCED = frozenset(
    {"h264", "hevc", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "mjpeg"}
)
# AV1's decoder takes the wish to skip only when it is opened: only whole spans are left out.
FAST_CODECS = SKIPS_UNREFERENCED | {"av1"}
# Containers that mark random access points and give every packet its own timestamp.
FAST_CONTAINERS = frozenset({"mp4", "mkv", "webm", "avi"})
# Streams without an index: random access points are found by parsing, which is sure in MPEG-2 only.
STREAM_CONTAINERS = frozenset({"mpeg", "mpegts"})


def can_plan(codec: str, container: str) -> bool:
    """Whether codec and container are among those where decoding from inside is exact."""
    if container in STREAM_CONTAINERS:
        return codec in ("mpeg1video", "mpeg2video")
    if container == "avi" and codec in ("h264", "hevc"):  # AVI does not know when frames are shown
        return False
    return codec in FAST_CODECS and container in FAST_CONTAINERS


@dataclass(frozen=True)
class Span:
    """Decode from packet `start` until the target packets' frames have come out."""

    start: int
    targets: tuple[int, ...]
    dropped: frozenset[int]  # leading packets that must not be decoded


def plan_spans(
    packets: Sequence[PacketFacts], times: Collection[int], *, codec: str
) -> list[Span] | None:
    """Spans that hold the frames shown at `times`, in decoding order.

    None when the packets do not prove that decoding from inside is exact: start of the stream is
    not a random access point, a time is given to two packets, or has no pts.
    """
    shown = [packet.time for packet in packets if packet.is_shown]
    if len(set(shown)) != len(shown) or not all(packet.has_pts for packet in packets):
        return None
    if not packets[0].is_keyframe or _leading(packets, 0):
        return None
    starts = _random_access_points(packets, codec)
    wanted = set(times)
    groups: list[tuple[int, list[int]]] = []
    for index, packet in enumerate(packets):
        if not (packet.is_shown and packet.time in wanted):
            continue
        place = bisect_right(starts, index) - 1
        if packet.time < packets[starts[place]].time:
            place = max(place - 1, 0)  # a leading frame needs the group before
        start, targets = starts[place], [index]
        while groups and start <= groups[-1][1][-1]:  # overlaps: one span for both
            earlier_start, earlier_targets = groups.pop()
            start, targets = min(start, earlier_start), earlier_targets + targets
        groups.append((start, targets))
    return [
        Span(start, tuple(targets), _leading(packets, start) - set(targets))
        for start, targets in groups
    ]


def _random_access_points(packets: Sequence[PacketFacts], codec: str) -> list[int]:
    """Keyframes. In H.264 only those of closed groups: later frames may refer to leading ones."""
    keys = [index for index, packet in enumerate(packets) if packet.is_keyframe]
    if codec != "h264":
        return keys
    return [index for index in keys if not _leading(packets, index)]


def _leading(packets: Sequence[PacketFacts], key: int) -> frozenset[int]:
    """Packets between this keyframe and the next that are shown before it."""
    leading = []
    for index in range(key + 1, len(packets)):
        if packets[index].is_keyframe:
            break
        if packets[index].time < packets[key].time:
            leading.append(index)
    return frozenset(leading)
