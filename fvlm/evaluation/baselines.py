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

from fvlm.clips.latents import fit_ar1
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
    return Baselines(*fit_ar1(batches))


def persistence_losses(latents: Tensor) -> Tensor:
    """mse(Y_{t-1}, Y_t), float32 [B,T]; NaN for frame 1, which has no frame before it."""
    copied = frame_losses(latents[:, :-1], latents[:, 1:])
    return torch.nn.functional.pad(copied, (1, 0), value=torch.nan)
