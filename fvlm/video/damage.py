"""What counts as damage: what FFmpeg says while it decodes, and an irregularity that is none.

FFmpeg conceals much damage and only prints about it. In the worker stderr is a file of its own;
FFmpeg's own callback writes there. The log level stays as it is, and Python takes no part: its
logging callback can deadlock with decoding threads.

Some encoders of H.264 (older phones) mark a picture as IDR, so a place where decoding may start,
although one of its slices is predicted. FFmpeg decodes it, but refuses it when asked to report
every error.
"""

import os
import re
import stat

import av.logging

LINE = re.compile(r"\[(?P<context>[^\]@]+) @ 0x[0-9a-f]+\] (?P<text>.*)")
# Remarks of decoders that do not make a picture wrong.
BENIGN = re.compile(
    r"A non-intra slice in an IDR NAL unit"
    r"|mmco: unref short failure"  # asks to forget a picture that is forgotten already
    r"|Increasing reorder buffer|deprecated|not implemented|unsupported|experimental"
)
# What demuxers say when bytes are lost or make no sense.
DEMUXER_DAMAGE = re.compile(
    r"exceeds containing|exceeds max length|invalid as first byte|ended prematurely"
    r"|Invalid track number|corrupt|partial file|Truncat|Failed to parse header",
    re.IGNORECASE,
)
IDR_SLICE = 5  # nal_unit_type, ITU-T H.264 table 7-1
INTRA_SLICES = {2, 4, 7, 9}  # slice_type, table 7-6


class Messages:
    """Collects what is printed from now on; hears nothing unless stderr is a file."""

    def __init__(self) -> None:
        self._is_file = stat.S_ISREG(os.fstat(2).st_mode)
        self._start = os.fstat(2).st_size
        if self._is_file:
            av.logging.restore_default_callback()

    def damage(self, decoder: str | None) -> str | None:
        """The first message that means damage.

        `decoder` is the name of the decoder whose remarks count; None counts the demuxer's only.
        """
        if not self._is_file:
            return None
        said = os.pread(2, os.fstat(2).st_size - self._start, self._start)
        lines = said.decode(errors="replace").splitlines()
        for line in lines:
            match = LINE.search(line)
            if match is None or BENIGN.search(match["text"]):
                continue
            if match["context"] == decoder or DEMUXER_DAMAGE.search(match["text"]):
                return match["text"]
        return None


def has_predicted_idr(packet: bytes, extradata: bytes | None) -> bool:
    """Whether the packet's IDR slices are of both kinds, intra coded and predicted.

    A packet whose units do not add up to its length is damaged, not irregular.
    """
    kinds = set()
    for unit in _units(packet, extradata):
        if len(unit) > 8 and unit[0] & 31 == IDR_SLICE:
            bits = int.from_bytes(unit[1:9], "big")
            _, left = _exp_golomb(bits, 64)  # first_mb_in_slice
            slice_type, _ = _exp_golomb(bits, left)
            kinds.add(slice_type in INTRA_SLICES)
    return len(kinds) == 2


def _units(packet: bytes, extradata: bytes | None) -> list[bytes]:
    """The first bytes of each NAL unit, length-prefixed (avcC) or after start codes (Annex B)."""
    if not extradata or extradata[0] != 1 or len(extradata) < 5:
        return [unit[:16] for unit in packet.split(b"\0\0\1")[1:]]
    prefix = (extradata[4] & 3) + 1
    units, position = [], 0
    while position + prefix < len(packet):
        length = int.from_bytes(packet[position : position + prefix], "big")
        units.append(packet[position + prefix : position + prefix + min(length, 16)])
        position += prefix + length
    return units if position == len(packet) else []


def _exp_golomb(bits: int, left: int) -> tuple[int, int]:
    """One ue(v) of section 9.1 from the `left` low bits; returns (value, bits left)."""
    rest = bits & ((1 << left) - 1)
    zeros = left - rest.bit_length()
    left -= 2 * zeros + 1
    return (rest >> max(left, 0)) - 1, max(left, 0)
