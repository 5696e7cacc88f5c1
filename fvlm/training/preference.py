"""Direct preference optimisation: the chosen answer is to gain on the rejected one.

    margin = beta ((log p(chosen) - log p_0(chosen)) - (log p(rejected) - log p_0(rejected)))
    sigmoid: -log sigmoid(margin)        ipo: (margin / beta - 1 / (2 beta))^2, p: means over tokens

p_0: of the model that the training starts from, each pass held to the same pass. What that one says
of each position of the sample stream is computed once, before the first step: clips, questions and
noise are pure in (seed, position), so that no second model has to be in memory.

Source: Rafailov et al., "Direct Preference Optimization" (2023), equation 7; Azar et al., "A
General Theoretical Paradigm to Understand Learning from Human Preferences" (2023), equation 17;
label smoothing: Mitchell, "A note on DPO with noisy preferences" (2023).

Axes: B clips; last axis of pairs: chosen, rejected.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from fvlm.clips.batch import Batch, Captions
from fvlm.core.device import autocast
from fvlm.core.io import atomic_write
from fvlm.core.progress import Progress
from fvlm.model.foveated import FoveatedModel, Prediction
from fvlm.training.checkpoint import REFERENCE
from fvlm.training.distributed import is_main, share_of
from fvlm.training.objective import add_noise
from fvlm.training.optim import PreferParams, TrainParams

PASSES = ("coarse", "fine")


def preference_losses(
    model: FoveatedModel, batch: Batch, params: TrainParams, *, prefer: PreferParams
) -> dict[str, Tensor]:
    """Scalar losses of a batch with rejected answers and a reference, means over its clips.

    Besides, of each pass: the share of pairs whose chosen answer has gained on the rejected one,
    and the log-probability of the chosen one, which may fall while the margin rises.
    """
    with autocast(batch.latents.device, params.dtype):
        found = model(batch.inputs, batch.latents, batch.captions, batch.rejected)
    assert batch.reference is not None
    losses, told = dict[str, Tensor](), dict[str, Tensor]()
    lengths = _lengths(batch)
    for number, name in enumerate(PASSES):
        pair = log_probabilities(found, batch, name)
        before = batch.reference[:, number]
        if prefer.loss == "ipo":
            pair, before = pair / lengths, before / lengths
        gain = (pair - before).diff(dim=1)[:, 0].neg()  # of the chosen one over the rejected one
        loss = pair_losses(gain, prefer).mean()
        likelihood = -log_probabilities(found, batch, name)[:, 0] / lengths[:, 0]
        losses[name] = loss + prefer.sft_weight * likelihood.mean()
        told |= {
            f"loss_{name}": losses[name],
            f"gained_{name}": (gain > 0).float().mean(),
            f"chosen_{name}": -likelihood.mean(),
        }
    # The head on latents has no part in it; under several processes a weight needs a gradient.
    unused = 0 * (found.coarse.float().mean() + found.fine.float().mean())
    fine = losses["fine"] if model.fine_iterations else 0 * losses["coarse"]
    weight = params.lambda_coarse if model.fine_iterations else 1.0
    return {"loss": fine + weight * losses["coarse"] + unused, **told}


def pair_losses(gain: Tensor, prefer: PreferParams) -> Tensor:
    """The loss of each pair [B] from how much its chosen answer has gained on the rejected one."""
    if prefer.loss == "ipo":
        return (gain - 1 / (2 * prefer.beta)) ** 2
    margin, wrong = prefer.beta * gain, prefer.label_smoothing
    return -(1 - wrong) * F.logsigmoid(margin) - wrong * F.logsigmoid(-margin)


def log_probabilities(found: Prediction, batch: Batch, name: str) -> Tensor:
    """Summed over the tokens of both answers in a pass, float32 [B,2]."""
    means = torch.stack([getattr(found, f"caption_{name}"), getattr(found, f"rejected_{name}")], 1)
    return -means * _lengths(batch)


def _lengths(batch: Batch) -> Tensor:
    """Tokens of both answers, float32 [B,2]."""

    def tokens(text: Captions | None) -> Tensor:
        assert text is not None
        assert text.counted is not None
        return text.counted.sum(1)

    return torch.stack([tokens(batch.captions), tokens(batch.rejected)], dim=1).float()


@torch.no_grad()
def reference_of(
    model: FoveatedModel,
    load: Callable[[range], Batch],
    params: TrainParams,
    device: torch.device,
    kept: Path | None,
) -> dict[int, Tensor]:
    """Log-probabilities [2,2] (passes, answers) of this model by position of the sample stream.

    Of the positions that this process trains on. kept: a folder to keep them in, for a training
    that is resumed. A forward for each position: a third of a training's cost.
    """
    size = params.batch_size
    shares = [share_of(range(n * size, (n + 1) * size)) for n in range(_forwards(params))]
    positions = [position for share in shares for position in share]
    # Of each process; a longer training has the same folder where the rate is constant.
    named = f"{shares[0].start}-{len(shares[0])}-{len(positions)}"
    path = kept and kept / REFERENCE.format(named)
    if path and path.is_file():
        return dict(zip(positions, load_file(path)["reference"], strict=True))
    model.to(device).eval()
    found = list[Tensor]()
    silent = not is_main()
    with Progress("reference", total=len(positions), unit="clip", silent=silent) as progress:
        for share in shares:
            batch = add_noise(load(share).to(device), share, params)
            with autocast(device, params.dtype):
                made = model(batch.inputs, batch.latents, batch.captions, batch.rejected)
            found.append(torch.stack([log_probabilities(made, batch, n) for n in PASSES], 1).cpu())
            progress.advance(len(share))
    values = torch.cat(found).contiguous()
    if path:
        with atomic_write(path) as file:
            file.write(save({"reference": values}))
    return dict(zip(positions, values, strict=True))


def _forwards(params: TrainParams) -> int:
    return params.steps * params.gradient_accumulation_steps


def with_reference(
    load: Callable[[range], Batch], reference: dict[int, Tensor], positions: range
) -> Batch:
    """The batch at these positions, with what the first model said of it."""
    known = torch.stack([reference[position] for position in positions])
    return replace(load(positions), reference=known)
