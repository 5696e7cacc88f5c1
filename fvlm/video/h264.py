"""One irregularity of H.264 that decoders forgive and the strict mode does not.

Some encoders (older phones) mark a picture as IDR, so a place where decoding may start, although
one of its slices is predicted. FFmpeg decodes it, but refuses it when asked to report every error.
"""

from collections.abc import Iterator

IDR_SLICE = 5  # nal_unit_type, ITU-T H.264 table 7-1
INTRA_SLICES = {2, 4, 7, 9}  # slice_type, table 7-6


def has_predicted_idr(packet: bytes, extradata: bytes | None) -> bool:
    """Whether the packet holds an IDR slice that is not intra coded."""
    for unit in _units(packet, extradata):
        if len(unit) > 8 and unit[0] & 31 == IDR_SLICE:
            bits = int.from_bytes(unit[1:9], "big")
            _, used = _exp_golomb(bits, 64)  # first_mb_in_slice
            slice_type, _ = _exp_golomb(bits, used)
            if slice_type not in INTRA_SLICES:
                return True
    return False


def _units(packet: bytes, extradata: bytes | None) -> Iterator[bytes]:
    """The first bytes of each NAL unit, length-prefixed (avcC) or after start codes (Annex B)."""
    if not extradata or extradata[0] != 1 or len(extradata) < 5:
        for unit in packet.split(b"\0\0\1")[1:]:
            yield unit[:16]
        return
    prefix = (extradata[4] & 3) + 1
    position = 0
    while position + prefix < len(packet):
        length = int.from_bytes(packet[position : position + prefix], "big")
        yield packet[position + prefix : position + prefix + min(length, 16)]
        position += prefix + length


def _exp_golomb(bits: int, left: int) -> tuple[int, int]:
    """One ue(v) of section 9.1 from the `left` low bits; returns (value, bits left)."""
    rest = bits & ((1 << left) - 1)
    zeros = left - rest.bit_length()
    left -= 2 * zeros + 1
    return (rest >> max(left, 0)) - 1, max(left, 0)
