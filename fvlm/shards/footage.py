"""Which clips show footage that other clips show, also in another codec, size or quality.

The decode stage keeps a perceptual hash with every clip. Clips are compared that agree in one of 16
bands of 16 bits: what cells of a frame are brighter than the frame, or than themselves in the next
one; of a band that many share, only with the first of them. Of the demo's clips, coded anew with a
tenth of the bits, the mean difference is at most 2.5 of 255; of two different clips of the same
film at least 26.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAMES = 8  # of a clip, that its hash is made of
CELLS = 4  # a side
NEAR = 4.0  # mean difference of two clips of the same footage, of 255, at most
ALIKE = 0.98  # their correlation, at least
BANDS = 2 * FRAMES
PART = 4096  # clips or pairs that are looked at together
COMMON = 64  # clips of a band that one is compared with: not every pair where all have a title


def hash_footage(frames: np.ndarray) -> str:
    """Hex of what a clip looks like from far away: FRAMES frames of 4 x 4 RGB cells, uint8.

    frames: uint8 [T,3,S,S].
    """
    chosen = frames[np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]
    size = max(chosen.shape[-1], CELLS)
    places = np.arange(size) * chosen.shape[-1] // size
    large = chosen[:, :, places][..., places].astype(np.float32)
    starts = np.arange(CELLS) * size // CELLS
    ends = np.append(starts[1:], size)
    sums = np.add.reduceat(np.add.reduceat(large, starts, axis=2), starts, axis=3)
    areas = np.outer(ends - starts, ends - starts)
    return (sums / areas).round().astype(np.uint8).tobytes().hex()


def show_same(clips: Iterable[str], others: Iterable[str]) -> list[bool]:
    """Whether one of the others shows the footage of each clip; all are given by their hashes.

    Memory holds what the clips look like, and a part of the others at a time.
    """
    pictures = np.concatenate(list(_pictures(clips)))
    bands = np.concatenate(
        [_bands(part) for part in np.split(pictures, range(PART, len(pictures), PART))]
    )
    found = np.zeros(len(pictures), bool)
    orders = [np.argsort(band, kind="stable") for band in bands.T]
    met = np.zeros((BANDS, 2**16), np.int64)  # others with these bits, so far
    for known in _pictures(others):
        for number, values in enumerate(_bands(known).T):
            first = _rank(values) + met[number, values] < COMMON
            met[number] += np.bincount(values, minlength=2**16)
            rows = np.flatnonzero(first)
            pairs = _pairs(bands[orders[number], number], values[rows])
            for clip, row in _near(pictures, orders[number][pairs[0]], known, rows[pairs[1]]):
                found[clip] = found[clip] or _is_same(pictures[clip], known[row])
    return found.tolist()


def _pictures(texts: Iterable[str]) -> Iterator[NDArray[np.uint8]]:
    """[PART,FRAMES,3,CELLS,CELLS] at a time."""
    waiting = iter(texts)
    while part := "".join(islice(waiting, PART)):
        content = np.frombuffer(bytes.fromhex(part), np.uint8)
        yield content.reshape(-1, FRAMES, 3, CELLS, CELLS)


def _bands(pictures: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """[clips,BANDS]."""
    grey = pictures.mean(axis=2).reshape(-1, FRAMES, CELLS**2)
    bits = np.concatenate(
        [grey > grey.mean(axis=2, keepdims=True), grey > np.roll(grey, -1, axis=1)], axis=1
    )
    return np.packbits(bits, axis=2).view(np.uint16)[..., 0]


def _rank(values: NDArray[np.uint16]) -> NDArray[np.int64]:
    """How many equal values stand before each one."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return ranks


def _pairs(
    ordered: NDArray[np.uint16], values: NDArray[np.uint16]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All places in `ordered` and in `values` that hold equal values."""
    starts = np.searchsorted(ordered, values)
    counts = np.searchsorted(ordered, values, side="right") - starts
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + within, np.repeat(np.arange(len(values)), counts)


def _near(
    pictures: NDArray[np.uint8],
    clips: NDArray[np.int64],
    known: NDArray[np.uint8],
    rows: NDArray[np.int64],
) -> Iterator[tuple[int, int]]:
    """The pairs that differ by NEAR at most."""
    for start in range(0, len(clips), PART):
        chosen = slice(start, start + PART)
        one, other = pictures[clips[chosen]].astype(np.int16), known[rows[chosen]]
        sums = np.abs(one - other).sum(axis=(1, 2, 3, 4))
        for place in np.flatnonzero(sums <= NEAR * one[0].size).tolist():
            yield int(clips[start + place]), int(rows[start + place])


def _is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    one, other = one.astype(np.float32), other.astype(np.float32)
    spread = one.std() * other.std()
    return bool(
        spread == 0 or ((one - one.mean()) * (other - other.mean())).mean() >= ALIKE * spread
    )
