"""Does the score mean anything? Frames that lost information should score higher.

Both frames of a pair get the same masks, so that chance does not blur the comparison.

Axes: N frames, S pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from fvlm.core.errors import ParamsError


@dataclass(frozen=True)
class Pairs:
    """rising: share of frames whose score rises. ratio_median: changed / clean score.

    wilcoxon_p: one-sided signed-rank test (Wilcoxon 1945) that scores rise, over the clips' mean
    log ratios: frames of a clip are no independent evidence.

    A pair with a score of 0 has no ratio: it counts in `rising` alone. NaN without any ratio.
    """

    rising: float
    ratio_median: float
    wilcoxon_p: float


def compare(
    clean: NDArray[np.float64], changed: NDArray[np.float64], clips: Sequence[str]
) -> Pairs:
    """Scores [N] of clean and changed frames, and the clip of each."""
    rising, defined = float((changed > clean).mean()), (clean > 0) & (changed > 0)
    if not defined.any():
        return Pairs(rising, float("nan"), float("nan"))
    gain = np.log(changed[defined] / clean[defined])
    _, member = np.unique(np.asarray(clips)[defined], return_inverse=True)
    by_clip = np.bincount(member, weights=gain) / np.bincount(member)
    p = 1.0 if not by_clip.any() else float(stats.wilcoxon(by_clip, alternative="greater").pvalue)
    return Pairs(rising, float(np.exp(np.median(gain))), p)


def blur(frames: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of frames uint8 [N,3,S,S]; sigma in pixels, edges repeated."""
    radius = math.ceil(3 * sigma)
    distance = torch.arange(-radius, radius + 1, dtype=torch.float32, device=frames.device)
    kernel = torch.exp(-0.5 * (distance / sigma).square())
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(frames.float(), [radius] * 4, mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, None, :], groups=3)
    return _to_pixels(F.conv2d(rows, kernel[:, :, :, None], groups=3))


def downsample(frames: Tensor, factor: int) -> Tensor:
    """Frames uint8 [N,3,S,S] at 1/factor of their resolution, brought back to their size."""
    size = frames.shape[-1]
    if size // factor < 1:
        raise ParamsError(
            f"uncertainty.downsample: must be at most decode.frame_size ({size}), got {factor}"
        )
    small = F.interpolate(frames.float(), size=(size // factor,) * 2, mode="area")
    return _to_pixels(F.interpolate(small, size=(size, size), mode="bilinear"))


def _to_pixels(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)
