"""What lies behind the sprites of `question_on_film`: pictures of a film, FOOTAGE_RATE a second.

Axes: P pixels.
"""

from collections.abc import Sequence
from functools import cache
from math import ceil
from pathlib import Path

import av
import numpy as np

from fvlm.core.seeding import generator
from fvlm.corpus.rendered_scenes import PIXELS, STATES, Picture

FOOTAGE_RATE = 1  # pictures a second of the film; states move on as a real video's frames do


def footage(film: Sequence[Path], number: int, *, seed: int) -> list[Picture]:
    """STATES successive pictures from a random place of one of the film's clips.

    film: its clips, each of which lasts long enough; the same ones give clip `number` the same.
    """
    rng = generator(seed, "footage", number)
    shown = _pictures(film[int(rng.integers(len(film)))])
    first = int(rng.integers(len(shown) - STATES + 1))
    return shown[first : first + STATES]


@cache
def _pictures(path: Path) -> list[Picture]:
    """The centre of a clip's first frame and of those that follow it by whole steps, [P,P,3].

    A process that renders many clips decodes each of the film's once.
    """
    found = list[Picture]()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time * FOOTAGE_RATE >= len(found):
                found.append(_centre(frame))
    return found


def _centre(frame: av.VideoFrame) -> Picture:
    """The largest square in the middle of a frame, reduced to [P,P,3]."""
    scale = PIXELS / min(frame.width, frame.height)
    width, height = ceil(frame.width * scale), ceil(frame.height * scale)
    small = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    top, left = (height - PIXELS) // 2, (width - PIXELS) // 2
    return small[top : top + PIXELS, left : left + PIXELS].astype(np.uint8)
