"""Which clips show footage that other clips show, by their perceptual hashes.

Clips are compared that agree in one of 16 bands of 16 bits: what cells of a frame are brighter than
the frame, or than themselves in the next one. Not every pair is looked at.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fvlm.video.footage import CELLS, FRAMES

NEAR = 4.0  # mean difference of two clips of the same footage, of 255, at most
ALIKE = 0.98  # their correlation, at least
COMMON = 64  # clips that share a band; it tells nothing where more do


def show_same(clips: Sequence[str], others: Iterable[str]) -> list[bool]:
    """Whether one of the others shows the footage of each clip; all are given by their hashes."""
    known = [_pictures(text) for text in others]
    by_band: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for number, pictures in enumerate(known):
        for band in enumerate(_bands(pictures)):
            by_band[band].append(number)
    found = []
    for pictures in map(_pictures, clips):
        sharing = (by_band.get(band, []) for band in enumerate(_bands(pictures)))
        near = {number for numbers in sharing if len(numbers) <= COMMON for number in numbers}
        found.append(any(_is_same(pictures, known[number]) for number in near))
    return found


def _pictures(text: str) -> NDArray[np.float32]:
    """float32 [FRAMES,3,CELLS,CELLS]."""
    cells = np.frombuffer(bytes.fromhex(text), np.uint8).astype(np.float32)
    return cells.reshape(FRAMES, 3, CELLS, CELLS)


def _bands(pictures: NDArray[np.float32]) -> list[bytes]:
    grey = pictures.mean(axis=1).reshape(FRAMES, -1)
    bits = np.concatenate(
        [grey > grey.mean(axis=1, keepdims=True), grey > np.roll(grey, -1, axis=0)]
    )
    return [row.tobytes() for row in np.packbits(bits, axis=1)]


def _is_same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    if np.abs(one - other).mean() > NEAR:
        return False
    spread = one.std() * other.std()
    return bool(
        spread == 0 or ((one - one.mean()) * (other - other.mean())).mean() >= ALIKE * spread
    )
