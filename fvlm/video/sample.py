"""Which frames of a clip are stored: pure arithmetic on timestamps.

T frames number of stored frames. Timestamps are integer ticks of any time base, so that no rounding
can differ between machines.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from fractions import Fraction

from fvlm.core.errors import VideoError
from fvlm.video.reasons import Reason

Ticks = int | Fraction


def target_times(start: Ticks, end: Ticks, *, num_frames: int) -> list[Fraction]:
    """The centres of `num_frames` equal intervals of [start, end)."""
    step = Fraction(end - start, num_frames)
    return [start + step * (2 * i + 1) / 2 for i in range(num_frames)]


def choose_frames(
    pts: Sequence[int], end: Ticks, *, num_frames: int, start: Ticks | None = None
) -> list[int]:
    """Indices of the frames that are on display at the target times, strictly increasing.

    `pts` are the ticks at which the video's frames appear, ascending. The clip is [start, end): by
    default from the first frame on; `end` is when the last frame of the video disappears, or
    earlier. Where a frame stays long enough to cover several target times (variable frame rate),
    the later ones take the next frames, so that no frame is stored twice.

    Raises VideoError(too_few_frames) when the clip shows fewer than `num_frames` frames.
    """
    start = pts[0] if start is None else start
    first, stop = max(0, bisect_right(pts, start) - 1), bisect_left(pts, end)
    if stop - first < num_frames:
        message = f"{max(0, stop - first)} frames, {num_frames} are needed"
        raise VideoError(Reason.TOO_FEW_FRAMES, message)
    chosen: list[int] = []
    for i, time in enumerate(target_times(start, end, num_frames=num_frames)):
        shown = bisect_right(pts, time) - 1
        earliest = chosen[-1] + 1 if chosen else first
        latest = stop - num_frames + i  # leaves a frame for each later target
        chosen.append(min(max(shown, earliest), latest))
    return chosen
