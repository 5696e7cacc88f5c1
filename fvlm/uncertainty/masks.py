"""Dropout masks as a pure function of (seed, trial, pass, sample, site): any device, any batch.

A counter-based generator in plain 32-bit integer arithmetic, so that CPU, CUDA and MPS drop the
same values. Every (seed, trial, pass, sample, site) has its own odd stride and offset; element
number i of the stream is `mix(i * stride + offset)`. One 32-bit word decides two values by its
halves, therefore p is rounded to a multiple of 2^-16 (and the scale fits the rounded p exactly).

A word belongs to a place (token, feature), so that computing only the first token of a layer drops
what computing all of them would.

Source of `mix`: C. Wellons' hash prospector, the two-round hash of lowest known bias
(0x21f0aaad, 0xd35a2d97). 2.8 to 6.4 times as fast as `torch.nn.functional.dropout` on a CPU, which
draws its values one after the other.

Axes: R rows (one pass of one frame each), N tokens, D features.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 1 << 16
CHUNK = 1 << 16  # values masked at once: what is written to memory is read again from the cache


@dataclass(frozen=True)
class Row:
    """One stochastic pass of one frame. `sample` names the frame, independent of its place."""

    trial: int
    number: int
    sample: str


def kept_levels(p: float) -> int:
    """How many of the 65536 levels are kept; raises ValueError when p rounds to 0 or 1."""
    kept = LEVELS - round(p * LEVELS)
    if not 0 < kept < LEVELS:
        raise ValueError(f"must be between 2^-16 and 1 - 2^-16, got {p}")
    return kept


def row_keys(seed: int, rows: Sequence[Row], device: torch.device) -> Tensor:
    """Keys int32 [R,2]."""
    digests = b"".join(_digest(f"{seed}:{row.trial}:{row.number}:{row.sample}") for row in rows)
    keys = torch.frombuffer(bytearray(digests), dtype=torch.int32).view(len(rows), 2)
    return keys.to(device)


def drop(values: Tensor, keys: Tensor, site: str, kept: int) -> Tensor:
    """Dropout of `values` [R,N,D] in place: float32, D even; the result is scaled.

    keys: of `row_keys`; kept: of `kept_levels`. The mask is bits, the scale a float32: in bfloat16
    1/0.99 would be 1.0078.
    """
    if values.dtype != torch.float32:
        raise TypeError(f"expected float32, got {values.dtype}")
    rows, tokens, width = values.shape
    half = width // 2
    if half * 2 != width:
        raise ValueError(f"{site}: expected an even number of features, got {width}")
    offset, stride = _stream(keys, site)
    places = torch.arange(tokens * half, dtype=torch.int32, device=values.device)
    bits = values.view(torch.int32).view(rows, tokens, 2, half)
    together = max(1, CHUNK // (tokens * width)) if values.device.type == "cpu" else rows
    words, scratch = torch.empty(
        (2, together, tokens * half), dtype=torch.int32, device=keys.device
    )
    for start in range(0, rows, together):
        part = slice(start, min(start + together, rows))
        words, scratch = words[: part.stop - start], scratch[: part.stop - start]
        mix(torch.mul(places, stride[part], out=words).add_(offset[part]), scratch)
        # A half below `kept` gets its sign bit set; spread over the word, it keeps the value.
        low = torch.bitwise_and(words, LEVELS - 1, out=scratch).sub_(kept)
        bits[part, :, 0].bitwise_and_(low.bitwise_right_shift_(31).view(-1, tokens, half))
        high = words.bitwise_right_shift_(16).sub_(kept - LEVELS // 2)
        bits[part, :, 1].bitwise_and_(high.bitwise_right_shift_(31).view(-1, tokens, half))
        values[part].mul_(LEVELS / kept)
    return values


def mix(words: Tensor, scratch: Tensor) -> Tensor:
    """A bijection of int32 [..] in place; every bit of the result depends on every bit.

    scratch: of the same shape; nothing is allocated, because fresh memory costs more than this.
    """
    _fold(words, 16, scratch).mul_(0x21F0AAAD)
    _fold(words, 15, scratch).mul_(0xD35A2D97 - (1 << 32))
    return _fold(words, 15, scratch)


def _fold(words: Tensor, shift: int, scratch: Tensor) -> Tensor:
    """words ^ (words >>> shift), in place; torch's own shift repeats the sign."""
    torch.bitwise_right_shift(words, shift, out=scratch)
    return words.bitwise_xor_(scratch.bitwise_and_((1 << (32 - shift)) - 1))


def _stream(keys: Tensor, site: str) -> tuple[Tensor, Tensor]:
    """Offset and odd stride, int32 [R,1] each."""
    own = torch.frombuffer(bytearray(_digest(site)), dtype=torch.int32).to(keys.device)
    mixed = mix(keys ^ own, torch.empty_like(keys))
    offset, stride = mix(mixed.flip(1) + keys, torch.empty_like(keys)).split(1, dim=1)
    return offset, stride | 1


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
