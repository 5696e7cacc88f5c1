"""What a training step minimises: the losses of both passes."""

from torch import Tensor

from fvlm.compute import autocast
from fvlm.models.batch import Batch
from fvlm.models.foveated import FoveatedModel, frame_losses
from fvlm.training.optim import TrainParams


def batch_losses(model: FoveatedModel, batch: Batch, params: TrainParams) -> dict[str, Tensor]:
    """Scalar losses of a batch, means over its clips; `loss` is the one to minimise.

    loss = loss_fine + lambda_coarse * loss_coarse
    """
    with autocast(batch.latents.device, params.dtype):
        prediction = model(batch.inputs, batch.latents)
    coarse = frame_losses(prediction.coarse, batch.latents).mean()
    fine = frame_losses(prediction.fine, batch.latents).mean()
    return {
        "loss": fine + params.lambda_coarse * coarse,
        "loss_coarse": coarse,
        "loss_fine": fine,
    }
