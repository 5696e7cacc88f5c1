"""Which frames of a clip are stored: pure arithmetic on timestamps.

T frames number of stored frames. Timestamps are integer ticks of any time base, so that no rounding
can differ between machines.
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

from fvlm.core.errors import VideoError
from fvlm.video.reasons import Reason


def target_times(start: int, end: int, *, num_frames: int) -> list[Fraction]:
    """The centres of `num_frames` equal intervals of [start, end), in ticks."""
    step = Fraction(end - start, num_frames)
    return [start + step * (2 * i + 1) / 2 for i in range(num_frames)]


def choose_frames(pts: Sequence[int], end: int, *, num_frames: int) -> list[int]:
    """Indices of the frames that are on display at the target times, strictly increasing.

    `pts` are the ticks at which the clip's frames appear, ascending; `end` is when the last one
    disappears. Where a frame stays long enough to cover several target times (variable frame
    rate), the later ones take the next frames, so that no frame is stored twice.

    Raises VideoError(too_few_frames) when the clip has fewer than `num_frames` frames.
    """
    if len(pts) < num_frames:
        raise VideoError(Reason.TOO_FEW_FRAMES, f"{len(pts)} frames, {num_frames} are needed")
    chosen: list[int] = []
    for i, time in enumerate(target_times(pts[0], end, num_frames=num_frames)):
        shown = bisect_right(pts, time) - 1
        earliest = chosen[-1] + 1 if chosen else 0
        latest = len(pts) - num_frames + i  # leaves a frame for each later target
        chosen.append(min(max(shown, earliest), latest))
    return chosen
