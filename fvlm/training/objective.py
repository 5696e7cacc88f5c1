"""What a training step minimises: the losses of both passes, on latents and on captions."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fvlm.clips.batch import Batch
from fvlm.core.device import autocast
from fvlm.core.seeding import torch_seed
from fvlm.model.foveated import FoveatedModel, frame_losses
from fvlm.training.optim import TrainParams

Objective = Callable[[FoveatedModel, Batch, TrainParams], dict[str, Tensor]]


def batch_losses(model: FoveatedModel, batch: Batch, params: TrainParams) -> dict[str, Tensor]:
    """Scalar losses of a batch, means over its clips; `loss` is the one to minimise.

    loss = total_fine + lambda_coarse * total_coarse; without fine passes: total_coarse
    total = mse, or of a model that predicts captions: cross_entropy + lambda_recon * mse

    Every clip counts the same in every mean, also one without a caption, whose cross-entropy is 0:
    so a clip's share does not depend on the others, whatever the batch is divided into.
    """
    with autocast(batch.latents.device, params.dtype):
        found = model(batch.inputs, batch.latents, batch.captions)
    coarse = frame_losses(found.coarse, batch.latents).mean()
    fine = frame_losses(found.fine, batch.latents).mean()
    losses = {"loss_coarse": coarse, "loss_fine": fine}
    if found.caption_coarse is not None and found.caption_fine is not None:
        said_coarse, said_fine = found.caption_coarse.mean(), found.caption_fine.mean()
        losses |= {"loss_caption_coarse": said_coarse, "loss_caption_fine": said_fine}
        coarse = said_coarse + params.lambda_recon * coarse
        fine = said_fine + params.lambda_recon * fine
    loss = fine + params.lambda_coarse * coarse if model.fine_iterations else coarse
    return {"loss": loss, **losses}


def add_noise(batch: Batch, positions: range, params: TrainParams) -> Batch:
    """The batch with noise on its tokens: `token_noise` standard deviations of each clip's tokens.

    Against learning a small corpus by heart: no clip is seen twice alike. The noise of a clip
    depends on (seed, position) alone, so that it is the same however the stream is divided into
    batches and among processes, and after a resume.
    """
    if not params.token_noise:
        return batch
    tokens = batch.inputs.float()
    noise, source = torch.empty_like(tokens), torch.Generator(tokens.device)
    for clip, position in zip(noise, positions, strict=True):
        source.manual_seed(torch_seed(params.seed, "noise", position))
        clip.normal_(generator=source)
    deviation = tokens.std(dim=(1, 2, 3), keepdim=True)
    return replace(batch, inputs=tokens + params.token_noise * deviation * noise)
