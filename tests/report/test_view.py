from collections.abc import Callable

import numpy as np
import pytest
import torch

from fvlm.clips.batch import Batch
from fvlm.encoders.vae import VaeCodec
from fvlm.evaluation.baselines import persistence_losses
from fvlm.model.foveated import FoveatedModel, frame_losses
from fvlm.report.view import ClipView, pass_names, view_clip
from tests import tiny

T, N, D, S = 5, 10, 16, 32


@pytest.fixture
def vae() -> VaeCodec:
    return VaeCodec(tiny.vae(8, 8, 8, 8)).eval()


@pytest.fixture
def model() -> FoveatedModel:
    return tiny.foveated(iterations=2)


@pytest.fixture
def look(model: FoveatedModel, vae: VaeCodec) -> Callable[..., ClipView]:
    def view(tokens: torch.Tensor, latents: torch.Tensor) -> ClipView:
        frames = np.zeros((T, 3, S, S), np.uint8)
        frames[:, 0] = 255
        return view_clip(
            model,
            vae,
            frames=frames,
            batch=Batch(tokens[None], latents[None], keys=["clip"]),
            seconds=[0.0] * T,
        )

    return view


def test_a_view_is_what_the_model_computes(
    look: Callable[..., ClipView], model: FoveatedModel, vae: VaeCodec
) -> None:
    tokens, latents = torch.randn(T, N, D), torch.randn(T, 4, 4, 4)
    view = look(tokens, latents)
    with torch.no_grad():
        expected = model(tokens[None], latents[None])
        decoded = vae.decode(expected.fine[0]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(
        view.losses["fine"], frame_losses(expected.fine, latents[None])[0].numpy(), rtol=1e-4
    )
    copied = persistence_losses(latents[None])[0].numpy()
    np.testing.assert_allclose(view.losses["persistence"], copied, rtol=1e-4)
    assert np.abs(view.decoded["fine"].astype(int) - decoded).max() <= 1  # rounding
    assert view.decoded["actual"].shape == (T, S, S, 3)
    assert view.frames[0, 0, 0].tolist() == [255, 0, 0]


def test_maps_are_multiples_of_uniform_attention(look: Callable[..., ClipView]) -> None:
    """Tokens that are all alike are read alike, whatever the query."""
    alike = torch.randn(T, 1, D).expand(T, N, D)
    view = look(alike, torch.randn(T, 4, 4, 4))
    assert list(view.passes) == ["coarse", "fine 1", "fine 2", "autoregressive"]
    assert view.fine == "fine 2"
    for found in view.passes.values():
        np.testing.assert_allclose(found.maps, np.ones((T, 3, 3)), rtol=1e-4)
        assert found.entropy == pytest.approx(1.0)
        assert found.peak == pytest.approx(1.0)
    np.testing.assert_allclose(view.passes["coarse"].similarity, np.ones((T, T)), rtol=1e-4)


def test_a_single_fine_pass_needs_no_number() -> None:
    assert pass_names(1) == ["coarse", "fine", "autoregressive"]
