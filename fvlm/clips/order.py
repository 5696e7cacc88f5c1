"""Which clips and which of their frames a training step sees: pure in (seed, position).

Training sees an endless stream of positions 0, 1, 2, ..; position p is the (p mod n)-th clip of
epoch p div n, in that epoch's order. A batch may span epochs. Nothing here depends on what ran
before, so a resumed training sees the same clips and frames as an uninterrupted one.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fvlm.core.seeding import generator

Indices = NDArray[np.int64]
FrameChoice = Literal["run", "stride", "random"]


def rows_at(positions: range, *, clips: int, seed: int) -> Indices:
    """Row numbers of the clips at these positions of the stream, int64 [len(positions)]."""
    rows = [
        _order(epoch, clips=clips, seed=seed)[place]
        for epoch, place in (divmod(position, clips) for position in positions)
    ]
    return np.asarray(rows, dtype=np.int64)


@lru_cache(maxsize=4)
def _order(epoch: int, *, clips: int, seed: int) -> Indices:
    """The order of an epoch, made once: that of 10 million clips takes most of a second."""
    return generator(seed, "order", epoch).permutation(clips)


def trained_frames(
    positions: range, *, stored: int, count: int, seed: int, choice: FrameChoice
) -> Indices:
    """For each position `count` of the stored frames in order, int64 [len, count].

    run: from a random frame on, one after the other. stride: from a random frame on, with the
    widest gap that fits. random: a random subset, with gaps of any width.
    """
    return np.asarray(
        [
            _frames_at(generator(seed, "frames", position), stored, count, choice)
            for position in positions
        ],
        dtype=np.int64,
    )


def _frames_at(rng: np.random.Generator, stored: int, count: int, choice: FrameChoice) -> Indices:
    if choice == "random":
        return np.sort(rng.choice(stored, size=count, replace=False))
    gap = stored // count if choice == "stride" else 1
    return rng.integers(stored - gap * (count - 1)) + gap * np.arange(count)


def even_frames(*, stored: int, count: int) -> Indices:
    """`count` of the stored frames, evenly spaced and centred, int64 [count]."""
    return (np.arange(count) * 2 + 1) * stored // (2 * count)


def evaluated_frames(*, stored: int, count: int) -> Indices:
    """`count` of the stored frames with the same gap between all of them, centred, int64 [count].

    The gap is as wide as the stored frames allow: where `count` does not divide them, the frames
    are a run in the middle, so that no gap is larger than another.
    """
    gap = stored // count
    start = (stored - 1 - gap * (count - 1)) // 2
    return start + gap * np.arange(count)
