"""Losses of every arm on the same clips: the two passes, their controls, and inference modes.

The controls repeat the last fine pass and change nothing but its queries:

    static_in_fine  q_static at every frame: is it the query, or just a second pass?
    shuffled        the predicted queries of another video's clip: is it *this* clip's query?
    random          random directions of the predicted queries' lengths: is it any query at all?
    message_only    predicted queries whose attention is that of q_static: is it where they look?
                    Of deep queries that are tokens: these carry a message past the attention.

Frame 1 of shuffled and random keeps q_init, which nothing predicts. The length is kept because it
sets the sharpness of the attention; only the direction is in question.

Axes: B batch, T frames, D token width, C h w latent.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fvlm.clips.batch import Batch
from fvlm.core.errors import FvlmError
from fvlm.core.params import Params
from fvlm.core.progress import Progress
from fvlm.core.seeding import generator
from fvlm.evaluation.baselines import Baselines
from fvlm.model.autoregressive import run_autoregressive
from fvlm.model.foveated import FoveatedModel, frame_losses
from fvlm.model.query_attention import DeepAttention
from fvlm.statistics.arms import CAPTIONS, MEANINGS, ClipName, Losses

LoadClips = Callable[[range], Batch]


class EvaluateParams(Params):
    """Section `evaluate` of params.yaml."""

    batch_size: int = Field(ge=1)
    num_frames: int = Field(ge=3)  # frames 1 and 2 cannot gain from a predicted query
    max_clips: int = Field(ge=0)  # of each split; 0 = all held-out ones
    bootstrap_samples: int = Field(ge=100)
    seed: int


@torch.inference_mode()
def evaluate_clips(
    model: FoveatedModel,
    load: LoadClips,
    clips: Sequence[ClipName],
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    baselines: Baselines,
) -> Losses:
    """Mean squared error of every arm, clip and frame: float64 [clips,T] by name of the arm.

    A model that predicts captions adds their losses, [clips,1]; NaN for a clip without a caption.

    `load` returns the inputs and latents of a range of `clips`; each is asked for once, but for the
    last ones of one group. Memory holds the losses of all clips, and one batch.
    The result does not depend on `batch_size` beyond float rounding. Undefined entries are NaN:
    frame 1 of `persistence`, and `shuffled` when there is no second video. Raises FvlmError when a
    loss is not finite.
    """
    batches = [
        range(start, min(start + batch_size, len(clips)))
        for start in range(0, len(clips), batch_size)
    ]
    partners = other_group([clip.group_id for clip in clips])
    found: list[dict[str, Tensor]] = []
    queries: dict[int, Tensor] = {}  # of clips that are partners of others still to come
    with Progress("evaluate", total=len(clips), unit="clip") as progress:
        for rows in reversed(batches):  # so that a clip's partner, which follows it, is known
            batch = load(rows).to(device)
            losses, predicted = arm_losses(model, batch, seed=seed)
            queries |= dict(zip(rows, predicted, strict=True))
            # The last clips have none behind them: with their own until the first clips are known.
            swapped = [queries.get(partners[row], queries[row]) for row in rows]
            losses["shuffled"] = losses_with_queries(model, batch, torch.stack(swapped))
            found.insert(0, losses | baselines.losses(batch.latents))
            needed = {partners[rows.start - 1], partners[-1]}
            queries = {row: queries[row] for row in needed & queries.keys()}
            progress.advance(len(rows))
    for rows, losses in zip(batches, found, strict=True):
        last = [row for row in rows if partners[row] < row]
        if last and queries:
            batch = load(range(last[0], rows.stop)).to(device)
            swapped = [queries[partners[row]] for row in last]
            losses["shuffled"][-len(last) :] = losses_with_queries(
                model, batch, torch.stack(swapped)
            )
        elif last:
            losses["shuffled"].fill_(torch.nan)  # there is no other group
    joined = {
        arm: torch.cat([losses[arm] for losses in found]).cpu().double().numpy()
        for arm in (*MEANINGS, *CAPTIONS)
        if arm in found[0]
    }
    _check_finite(joined, clips)
    return joined


@torch.inference_mode()
def coarse_losses(
    model: FoveatedModel, load: LoadClips, clips: int, *, batch_size: int, device: torch.device
) -> NDArray[np.float64]:
    """Losses [clips,T] of the coarse pass alone: of models of their own, that have no other."""
    found = []
    for start in range(0, clips, batch_size):
        batch = load(range(start, min(start + batch_size, clips))).to(device)
        B, T = batch.latents.shape[:2]
        cache = model.cache_clips(batch.inputs, batch.captions)
        predictor = model.run_pass(cache, model.static_queries(B, T), mode="coarse").predictor
        prediction = model.head(predictor, model.encode_previous(batch.latents))
        found.append(frame_losses(prediction, batch.latents).cpu().double())
    return torch.cat(found).numpy()


@torch.inference_mode()
def arm_losses(
    model: FoveatedModel, batch: Batch, *, seed: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Losses float32 [B,T] of every arm of the model but `shuffled`; predicted queries [B,T,D]."""
    latents = batch.latents
    B, T = latents.shape[:2]
    cache = model.cache_clips(batch.inputs, batch.captions)
    previous = model.encode_previous(latents)
    passes = model.run_passes(cache, B, T, captions=batch.captions)
    predicted = passes[-1].queries
    static = model.static_queries(B, T)
    controls = {
        "static_in_fine": static,
        "random": random_queries(predicted, keys=batch.keys, seed=seed),
    }
    masked = model.run_passes(cache.only_patches(), B, T)
    predictors = {
        "coarse": passes[0].predictor,
        "fine": passes[-1].predictor,
        "autoregressive": run_autoregressive(model, cache, B, T).predictor,
        **{
            arm: model.run_pass(cache, queries, mode="fine").predictor
            for arm, queries in controls.items()
        },
        "coarse_cls_masked": masked[0].predictor,
        "fine_cls_masked": masked[-1].predictor,
    }
    if isinstance(model.attention, DeepAttention) and model.attention.role == "token":
        message = model.run_pass(cache, predicted, mode="fine", look=static)
        predictors["message_only"] = message.predictor
    losses = {
        arm: frame_losses(model.head(predictor, previous), latents)
        for arm, predictor in predictors.items()
    }
    for name, output in zip(CAPTIONS, (passes[0], passes[-1]), strict=True):
        said = model.caption_losses(output, batch.captions)
        if said is not None and batch.captions is not None:
            silent = ~batch.captions.mask.any(dim=1)
            losses[name] = said.masked_fill(silent, torch.nan)[:, None]
    return losses, predicted


@torch.inference_mode()
def losses_with_queries(model: FoveatedModel, batch: Batch, queries: Tensor) -> Tensor:
    """Losses float32 [B,T] of a fine pass with the given queries [B,T,D]."""
    cache = model.cache_clips(batch.inputs, batch.captions)
    predictor = model.run_pass(cache, queries, mode="fine").predictor
    previous = model.encode_previous(batch.latents)
    return frame_losses(model.head(predictor, previous), batch.latents)


def random_queries(predicted: Tensor, *, keys: Sequence[str], seed: int) -> Tensor:
    """Random directions with the lengths of the predicted queries [B,T,D]; frame 1 keeps q_init.

    Drawn per clip from (seed, key), hence the same in any batch.
    """
    T, D = predicted.shape[1:]
    drawn = np.stack(
        [generator(seed, f"random queries {key}").standard_normal((T, D)) for key in keys]
    )
    directions = torch.from_numpy(drawn).to(predicted)
    scaled = directions * (
        predicted.norm(dim=-1, keepdim=True) / directions.norm(dim=-1, keepdim=True)
    )
    return torch.cat([predicted[:, :1], scaled[:, 1:]], dim=1)


def other_group(groups: Sequence[str]) -> list[int]:
    """For every clip the next one, cyclically, of another group; -1 when there is one group."""
    count = len(groups)
    if len(set(groups)) < 2:
        return [-1] * count
    partners, following = [-1] * count, -1
    for row in reversed(range(2 * count)):  # twice around: the last ones look at the first
        place, after = row % count, (row + 1) % count
        if groups[after] != groups[place]:
            following = after
        partners[place] = following
    return partners


def _check_finite(losses: Losses, clips: Sequence[ClipName]) -> None:
    """A NaN that is not there by definition means a broken model or clip, never a result."""
    for arm in (name for name in MEANINGS if name in losses):
        values = losses[arm]
        defined = values[:, 1:] if arm == "persistence" else values
        broken = np.flatnonzero(~np.isfinite(defined).all(axis=1))
        if broken.size and not (arm == "shuffled" and np.isnan(values).all()):
            names = ", ".join(clips[row].key for row in broken.tolist())
            raise FvlmError(f"evaluate: the loss of `{arm}` is not finite for clips: {names}")
