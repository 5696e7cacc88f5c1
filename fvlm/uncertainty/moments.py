"""The score of a frame: mean variance of its embedding over stochastic passes.

    score = 1/D * sum_d sum_t (f_td - mean_d)^2 / (T - 1)

`pre` takes the embedding as it is, `post` after L2 normalisation of every pass.

Sums are those of the difference to the deterministic embedding, in float64: plain sums of squares
in float32 were 19% off where the mean is a thousand standard deviations.

Axes: F frames, t passes of one forward, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

VARIANTS = ("pre", "post")


class Moments:
    """Running sums of `pre` and `post` over the passes of a trial, on the CPU."""

    def __init__(self, reference: Tensor) -> None:
        """reference: deterministic embeddings [F,D]; any gives the same score, up to rounding."""
        self.passes = 0
        self._shift = _variants(reference)
        self._sum = torch.zeros_like(self._shift)
        self._squares = torch.zeros_like(self._shift)

    def add(self, embeddings: Tensor) -> None:
        """Embeddings of further passes, [F,t,D]."""
        moved = _variants(embeddings) - self._shift[:, :, None]
        self._sum += moved.sum(dim=2)
        self._squares += moved.square().sum(dim=2)
        self.passes += embeddings.shape[1]

    def scores(self) -> Tensor:
        """Scores float64 [2,F] of the passes so far, in the order of VARIANTS."""
        if self.passes < 2:
            raise ValueError(f"a variance needs at least 2 passes, got {self.passes}")
        deviations = self._squares - self._sum.square() / self.passes
        return deviations.mean(dim=-1).clamp_(min=0) / (self.passes - 1)


def _variants(embeddings: Tensor) -> Tensor:
    """[..,D] -> float64 [2,..,D]."""
    values = embeddings.cpu().double()  # MPS has no float64
    return torch.stack((values, F.normalize(values, dim=-1)))
