"""A residual head begins as AR(1) of the training clips; another one with nothing new."""

import pytest
import torch

from fvlm.evaluation.baselines import fit_baselines
from fvlm.model.film_head import ResidualHead
from fvlm.model.foveated import FoveatedModel, frame_losses
from fvlm.training.start import start_as_ar1
from tests import tiny


def untrained() -> FoveatedModel:
    model = tiny.foveated(head="residual")
    for parameter in model.head.after[-1].parameters():
        torch.nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize("decay", [0.9, 0.0])
@torch.no_grad()
def test_an_untrained_model_predicts_what_ar1_predicts(decay: float) -> None:
    torch.manual_seed(0)
    latents = [torch.randn(3, 6, 4, 4, 4) + 1, torch.randn(2, 6, 4, 4, 4) + 1]
    for batch in latents:
        for t in range(1, 6):
            batch[:, t] = 1 + decay * (batch[:, t - 1] - 1) + 0.3 * (batch[:, t] - 1)
    model, drawn = untrained(), torch.random.get_rng_state()
    start_as_ar1(model, latents)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert isinstance(model.head, ResidualHead)
    assert model.head.gain.item() == pytest.approx(decay, abs=0.1)
    found = model(torch.randn(3, 6, 10, 16), latents[0])
    expected = fit_baselines(latents).losses(latents[0])["ar1"]
    for prediction in (found.coarse, found.fine):
        losses = frame_losses(prediction, latents[0])
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def test_no_latent_is_read_for_another_head() -> None:
    unread = iter([torch.ones(1, 2, 4, 4, 4)])
    start_as_ar1(tiny.foveated(), unread)
    assert next(unread) is not None
