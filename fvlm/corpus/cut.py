"""Cut a film into clips at keyframes: packets are copied, nothing is encoded again."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import av
from av.packet import Packet
from av.video.stream import VideoStream

from fvlm.core.errors import SourceError

# The same packets give the same bytes, on every day and every machine.
DETERMINISTIC = {"fflags": "+bitexact", "movflags": "+faststart"}


def cut_film(film: Path, *, starts: Sequence[int], targets: Sequence[Path]) -> None:
    """Write the frames [starts[i], starts[i + 1]) of the film's video stream to targets[i] as MP4.

    `starts` are increasing frame numbers of a film with a constant frame rate; the last clip ends
    with the film. Each clip begins at 0 seconds. Raises SourceError when a start is not a keyframe
    that a decoder can begin at: one which no later packet is shown before.
    """
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        borders = [*_positions(packets, stream, starts), len(packets)]
        for target, (first, last) in zip(targets, pairwise(borders), strict=True):
            _write_clip(target, stream, packets[first:last])


def _positions(
    packets: Sequence["Packet[VideoStream]"], stream: VideoStream, starts: Sequence[int]
) -> Iterator[int]:
    """Where in decoding order each starting frame's packet stands."""
    assert stream.average_rate is not None
    assert stream.time_base is not None
    frame_ticks = 1 / (stream.average_rate * stream.time_base)
    shown = [_pts(packet) for packet in packets]
    position_of = {pts: position for position, pts in enumerate(shown)}
    for start in starts:
        pts = round(shown[0] + start * frame_ticks)
        position = position_of.get(pts)
        if position is None or not packets[position].is_keyframe:
            raise SourceError(f"frame {start} of the film is not a keyframe")
        if max(shown[:position], default=-1) > pts or min(shown[position:]) < pts:
            raise SourceError(f"frames around keyframe {start} depend on both of its sides")
        yield position


def _write_clip(
    target: Path, stream: VideoStream, packets: Sequence["Packet[VideoStream]"]
) -> None:
    """Mux packets into an MP4 whose first frame is shown at 0 seconds."""
    origin = _pts(packets[0])
    with av.open(str(target), "w", format="mp4", options=DETERMINISTIC) as output:
        copy = output.add_stream_from_template(stream)
        for packet in packets:
            packet.pts = _pts(packet) - origin
            packet.dts = packet.dts - origin if packet.dts is not None else None
            packet.stream = copy
            output.mux(packet)


def _pts(packet: "Packet[VideoStream]") -> int:
    assert packet.pts is not None
    return packet.pts
