"""Predictions without a model, fitted on training clips at the frames that are evaluated.

    persistence   Y_{t-1}
    mean          the mean latent m of the training clips, per position
    ar1           m + a (Y_{t-1} - m), with the one coefficient a of least squares; m at frame 1

Axes: B batch, T frames, C h w latent.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fvlm.model.foveated import frame_losses


@dataclass(frozen=True)
class Baselines:
    """The mean latent of the training clips, float64 [C,h,w], and the coefficient of AR(1)."""

    mean: Tensor
    coefficient: float

    def losses(self, latents: Tensor) -> dict[str, Tensor]:
        """Losses float32 [B,T] of every baseline on latents [B,T,C,h,w].

        NaN for persistence at frame 1, which has no frame before it.
        """
        mean = self.mean.float().to(latents.device)
        before = latents[:, :-1].float() - mean
        decayed = torch.nn.functional.pad(mean + self.coefficient * before, (0,) * 6 + (1, 0))
        decayed[:, 0] = mean
        return {
            "persistence": persistence_losses(latents),
            "ar1": frame_losses(decayed, latents),
            "mean": frame_losses(mean.expand_as(latents), latents),
        }


def fit_baselines(batches: Iterable[Tensor]) -> Baselines:
    """Fit on the latents [B,T,C,h,w] of training clips, T >= 2, in one pass; at least one batch."""
    frames = pairs = 0
    total = before = after = torch.zeros(())
    product = square = 0.0
    for batch in batches:
        latents = batch.cpu().double()
        first, second = latents[:, :-1].flatten(0, 1), latents[:, 1:].flatten(0, 1)
        total = total + latents.sum(dim=(0, 1))
        before, after = before + first.sum(dim=0), after + second.sum(dim=0)
        product += float((first * second).sum())
        square += float((first * first).sum())
        frames += latents.shape[0] * latents.shape[1]
        pairs += len(first)
    mean = total / frames
    length = pairs * float((mean * mean).sum())
    # Sums over pairs of (Y_{t-1} - m) (Y_t - m) and of (Y_{t-1} - m)^2, multiplied out.
    covariance = product - float((mean * (before + after)).sum()) + length
    variance = square - 2 * float((mean * before).sum()) + length
    return Baselines(mean, covariance / variance if variance > 0 else 0.0)


def persistence_losses(latents: Tensor) -> Tensor:
    """mse(Y_{t-1}, Y_t), float32 [B,T]; NaN for frame 1, which has no frame before it."""
    copied = frame_losses(latents[:, :-1], latents[:, 1:])
    return torch.nn.functional.pad(copied, (1, 0), value=torch.nan)
