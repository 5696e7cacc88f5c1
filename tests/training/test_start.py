"""A residual head begins with the coefficient of least squares; another one with nothing new."""

import numpy as np
import pytest
import torch

from fvlm.training.start import start_as_copy
from tests import tiny


@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_the_gain_is_that_of_least_squares(decay: float) -> None:
    torch.manual_seed(0)
    latents = [torch.randn(3, 6, 4, 4, 4).half(), torch.randn(2, 6, 4, 4, 4).half()]
    for batch in latents:
        for t in range(1, 6):
            batch[:, t] = decay * batch[:, t - 1] + 0.1 * batch[:, t]
    model = tiny.foveated(head="residual")
    drawn = torch.random.get_rng_state()
    start_as_copy(model, latents)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    before = np.concatenate([batch[:, :-1].numpy().ravel() for batch in latents]).astype(float)
    after = np.concatenate([batch[:, 1:].numpy().ravel() for batch in latents]).astype(float)
    (expected,), *_ = np.linalg.lstsq(before[:, None], after, rcond=None)
    assert model.head.gain is not None
    assert model.head.gain.item() == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(decay, abs=0.05)


def test_clips_of_nothing_start_at_nothing() -> None:
    model = tiny.foveated(head="residual")
    start_as_copy(model, [torch.zeros(1, 3, 4, 4, 4)])
    assert model.head.gain is not None
    assert model.head.gain.item() == 0


def test_no_latent_is_read_for_another_head() -> None:
    start_as_copy(tiny.foveated(), iter([]))
    unread = iter([torch.ones(1, 2, 4, 4, 4)])
    start_as_copy(tiny.foveated(), unread)
    assert next(unread) is not None
