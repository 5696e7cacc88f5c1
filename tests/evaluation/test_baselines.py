"""Predictions without a model, against what they are by definition."""

import pytest
import torch

from fvlm.evaluation.baselines import fit_baselines, persistence_losses

SHAPE = (4, 3, 3)


def process(clips: int, frames: int, *, decay: float, mean: torch.Tensor) -> torch.Tensor:
    """Latents [clips,frames,*SHAPE] that keep `decay` of their distance from `mean`."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(clips, frames, *SHAPE, generator=generator)
    latents = [drawn[:, 0] / (1 - decay**2) ** 0.5]
    for t in range(1, frames):
        latents.append(decay * latents[-1] + drawn[:, t])
    return torch.stack(latents, dim=1) + mean


def test_the_coefficient_and_the_mean_are_found_again() -> None:
    mean = torch.arange(36.0).reshape(SHAPE)
    fitted = fit_baselines(process(300, 10, decay=0.7, mean=mean).split(64))
    assert fitted.coefficient == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(fitted.mean.float(), mean, atol=0.15, rtol=0)


def test_the_fit_is_the_least_squares_one_however_the_clips_are_batched() -> None:
    latents = process(11, 5, decay=0.4, mean=torch.full(SHAPE, 2.0)).half()
    centred = latents.double() - latents.double().mean(dim=(0, 1))
    before, after = centred[:, :-1], centred[:, 1:]
    expected = float((before * after).sum() / (before * before).sum())
    for size in (1, 4, 11):
        fitted = fit_baselines(latents.split(size))
        assert fitted.coefficient == pytest.approx(expected, rel=1e-9)
        torch.testing.assert_close(fitted.mean, latents.double().mean(dim=(0, 1)))


def test_losses_are_those_of_their_predictions() -> None:
    training = process(50, 6, decay=0.7, mean=torch.ones(SHAPE))
    held_out = process(3, 6, decay=0.2, mean=torch.ones(SHAPE))
    fitted = fit_baselines([training])
    found, m, a = fitted.losses(held_out), fitted.mean.float(), fitted.coefficient
    assert set(found) == {"persistence", "ar1", "mean"}
    torch.testing.assert_close(found["mean"], ((held_out - m) ** 2).mean(dim=(2, 3, 4)))
    expected = ((held_out[:, 1:] - m - a * (held_out[:, :-1] - m)) ** 2).mean(dim=(2, 3, 4))
    torch.testing.assert_close(found["ar1"][:, 1:], expected)
    torch.testing.assert_close(found["ar1"][:, 0], found["mean"][:, 0])
    torch.testing.assert_close(found["persistence"][:, 1:], persistence_losses(held_out)[:, 1:])


def test_latents_that_never_change_have_no_coefficient() -> None:
    still = torch.full((2, 4, *SHAPE), 0.5)
    fitted = fit_baselines([still])
    assert fitted.coefficient == 0
    assert float(fitted.losses(still)["ar1"].abs().max()) == 0


def test_persistence_copies_the_previous_latent() -> None:
    latents = torch.arange(4.0)[None, :, None, None, None].expand(2, 4, 3, 2, 2) ** 2
    found = persistence_losses(latents)
    assert found[:, 0].isnan().all()
    torch.testing.assert_close(found[0, 1:], torch.tensor([1.0, 9.0, 25.0]))
