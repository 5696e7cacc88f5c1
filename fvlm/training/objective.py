"""What a training step minimises: the batch it sees and the losses of both passes.

Axes: B batch, T frames, N tokens, D token width, C h w latent.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fvlm.compute import autocast
from fvlm.models.foveated import FoveatedModel, frame_losses
from fvlm.training.optim import TrainParams


@dataclass(frozen=True)
class Batch:
    """Tokens float16 [B,T,N,D], latents float16 [B,T,C,h,w] and the clips they come from."""

    tokens: Tensor
    latents: Tensor
    keys: list[str]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        tokens = self.tokens.to(device, non_blocking=True)
        return Batch(tokens, self.latents.to(device, non_blocking=True), self.keys)


def batch_losses(model: FoveatedModel, batch: Batch, params: TrainParams) -> dict[str, Tensor]:
    """Scalar losses of a batch, means over its clips; `loss` is the one to minimise.

    loss = loss_fine + lambda_coarse * loss_coarse
    """
    with autocast(batch.latents.device, params.dtype):
        prediction = model(batch.tokens, batch.latents)
    coarse = frame_losses(prediction.coarse, batch.latents).mean()
    fine = frame_losses(prediction.fine, batch.latents).mean()
    return {
        "loss": fine + params.lambda_coarse * coarse,
        "loss_coarse": coarse,
        "loss_fine": fine,
    }
