"""A leak detector: frames of independent noise tell nothing of each other, so nothing can gain."""

from collections.abc import Callable

import pytest
import torch

from fvlm.clips.batch import Batch
from fvlm.evaluation.baselines import fit_baselines
from fvlm.evaluation.losses import evaluate_clips
from fvlm.model.film_head import FilmHead
from fvlm.model.foveated import FoveatedModel, frame_losses
from fvlm.statistics.arms import ClipName, Losses

MakeModel = Callable[..., FoveatedModel]

T, N, D, LATENT = 5, 10, 16, (4, 4, 4)
STEPS, BATCH, HELD_OUT = 80, 8, 64


def noise(count: int, *, seed: int, leak: bool = False) -> Batch:
    """Clips whose latent can be read from the tokens of its own frame, and from nothing else.

    With `leak` from those of the frame before: as if a pass saw the frame that it predicts.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, T, *LATENT, generator=generator)
    tokens = torch.randn(count, T, N, D, generator=generator)
    shades = torch.randn(count, T, LATENT[0], generator=generator)
    tokens[..., : LATENT[0]] += 3 * (shades.roll(-1, dims=1) if leak else shades)[:, :, None]
    latents = 0.2 * latents + shades[..., None, None]
    return Batch(tokens, latents, keys=[f"clip-{row}" for row in range(count)])


def evaluated(model: FoveatedModel, *, leak: bool) -> tuple[Losses, float]:
    """Losses on held-out clips after a short training, and the least loss of a constant there."""
    model.head = FilmHead(24, LATENT[0], channels=8)  # small: the test must be quick
    model.train()
    weights = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    for step in range(STEPS):
        batch = noise(BATCH, seed=step, leak=leak)
        found = model(batch.inputs, batch.latents)
        losses = [frame_losses(part, batch.latents).mean() for part in (found.coarse, found.fine)]
        optimizer.zero_grad()
        (losses[0] + losses[1]).backward()
        optimizer.step()
    held_out = noise(HELD_OUT, seed=STEPS, leak=leak)
    clips = [ClipName(key, key) for key in held_out.keys]
    losses_by_arm = evaluate_clips(
        model.eval(),
        lambda rows: Batch(
            held_out.inputs[rows.start : rows.stop],
            held_out.latents[rows.start : rows.stop],
            held_out.keys[rows.start : rows.stop],
        ),
        clips,
        batch_size=HELD_OUT,
        seed=0,
        device=torch.device("cpu"),
        baselines=fit_baselines([held_out.latents]),
    )
    constant = held_out.latents.mean(dim=(0, 1))
    return losses_by_arm, (held_out.latents - constant).square().mean().item()


@pytest.mark.parametrize("deep", [0, 2], ids=["shallow", "deep"])
def test_no_arm_beats_the_mean_on_independent_frames(make_model: MakeModel, deep: int) -> None:
    losses, mean_predictor = evaluated(make_model(deep=deep), leak=False)
    for arm, values in losses.items():
        assert values[:, 1:].mean() > 0.97 * mean_predictor, arm
    assert losses["fine"].mean() < 1.3 * mean_predictor  # it has learned the mean


def test_the_detector_notices_a_leak(make_model: MakeModel) -> None:
    losses, mean_predictor = evaluated(make_model(), leak=True)
    for arm in ("coarse", "fine", "autoregressive"):
        assert losses[arm][:, 1:].mean() < 0.8 * mean_predictor, arm
