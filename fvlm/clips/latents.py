"""Latents of training clips, and what predicts one from the one before it without a model."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fvlm.clips.order import evaluated_frames, even_frames
from fvlm.shards.read import open_shards

FITTED, TOGETHER = 1000, 32  # training clips that are fitted on, at most; read at a time


def training_latents(encoded: Path, num_frames: int) -> Iterator[Tensor]:
    """Latents float16 [B,T,C,h,w] of up to FITTED training clips, evenly chosen, in batches.

    T: as many of the stored frames with equal gaps, as they are evaluated.
    """
    shards = open_shards(encoded, split="train")
    frames = evaluated_frames(stored=shards.fields["latents"].shape[0], count=num_frames)
    rows = even_frames(stored=len(shards.keys), count=min(FITTED, len(shards.keys)))
    for start in range(0, len(rows), TOGETHER):
        chosen = rows[start : start + TOGETHER]
        found = shards.read(chosen, fields=("latents",), frames=frames)
        yield torch.from_numpy(found["latents"])


def fit_ar1(batches: Iterable[Tensor]) -> tuple[Tensor, float]:
    """AR(1) of latents [B,T,C,h,w], T >= 2, in one pass: Y_t - m = a (Y_{t-1} - m).

    The mean latent m, float64 [C,h,w], and the coefficient a of least squares; at least one batch.
    """
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
    return mean, covariance / variance if variance > 0 else 0.0
