"""One irregularity of H.264 that decoders forgive and the strict mode does not.

Some encoders (older phones) mark a picture as IDR, so a place where decoding may start, although
one of its slices is predicted. FFmpeg decodes it, but refuses it when asked to report every error.
"""

IDR_SLICE = 5  # nal_unit_type, ITU-T H.264 table 7-1
INTRA_SLICES = {2, 4, 7, 9}  # slice_type, table 7-6


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
