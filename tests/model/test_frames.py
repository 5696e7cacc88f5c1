"""A model that takes frames is the model that takes stored tokens, with the encoder in front."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaModel

from fvlm.encoders.dino import DinoEncoder
from fvlm.model.foveated import FoveatedModel, frame_losses
from fvlm.model.query_attention import DeepAttention, ShallowAttention
from tests import tiny

B, T, L, SIZE, LATENT = 2, 3, 3, 48, (4, 4, 4)


def make_pair(stock: Any, k: int) -> tuple[FoveatedModel, FoveatedModel]:
    """The same weights for stored tokens and for frames; k encoder blocks for the query."""

    def make(*, frames: bool) -> FoveatedModel:
        encoder = DinoEncoder(copy.deepcopy(stock))
        tail = encoder.cut(k)
        return FoveatedModel(
            language=LlamaModel(tiny.llama(initializer_range=0.2)),
            attention=DeepAttention(tail) if tail else ShallowAttention(32, temperature=0.5),
            latent_shape=LATENT,
            fine_iterations=1,
            encoder=encoder if frames else None,
        )

    features, frames = make(frames=False), make(frames=True)
    frames.load_state_dict(features.state_dict(), strict=False)
    return features, frames


def make_clips() -> tuple[Tensor, Tensor]:
    frames = torch.randint(0, 256, (B, T, 3, SIZE, SIZE), dtype=torch.uint8)
    return frames, torch.randn(B, T, *LATENT)


def total(model: FoveatedModel, inputs: Tensor, latents: Tensor) -> Tensor:
    prediction = model(inputs, latents)
    losses = frame_losses(prediction.coarse, latents) + frame_losses(prediction.fine, latents)
    return losses.mean()


@pytest.mark.parametrize("k", range(L + 1))
@torch.no_grad()
def test_frames_give_what_their_stored_tokens_give(stock: Any, k: int) -> None:
    """Exactly from float32 tokens, to their rounding from float16, whatever the stored layer."""
    features, model = make_pair(stock, k)
    frames, latents = make_clips()
    tokens = DinoEncoder(stock)(frames.flatten(0, 1), layer=L - k).unflatten(0, (B, T))
    found = model(frames, latents)
    exact, stored = features(tokens, latents), features(tokens.half(), latents)
    for name in ("coarse", "fine"):
        assert torch.equal(getattr(found, name), getattr(exact, name))
        rounding = getattr(found, name) - getattr(stored, name)
        assert rounding.abs().max() < 0.02 * getattr(found, name).std()


@pytest.mark.parametrize("k", range(L + 1))
def test_a_frozen_encoder_gets_no_gradient_and_a_trained_one_does_everywhere(
    stock: Any, k: int
) -> None:
    _, model = make_pair(stock, k)
    frames, latents = make_clips()
    parts = ("encoder.", "attention.tail.")
    encoder = {n: p for n, p in model.named_parameters() if n.startswith(parts)}
    total(model, frames, latents).backward()
    assert all(value.grad is None for value in encoder.values())
    model.train_encoder()
    total(model, frames, latents).backward()
    for name, value in encoder.items():
        assert (value.grad is None) == name.endswith("mask_token"), name
        # A key's bias cancels in the softmax; one configuration has no registers.
        if value.grad is not None and not name.endswith("k.bias") and value.numel():
            assert value.grad.abs().sum() > 0, name


def test_the_other_kind_of_input_is_refused(stock: Any) -> None:
    features, model = make_pair(stock, 0)
    frames, latents = make_clips()
    with pytest.raises(TypeError, match=r"takes frames, got torch.float32"):
        model(torch.zeros(B, T, 10, 32), latents)
    with pytest.raises(TypeError, match=r"takes features, got torch.uint8"):
        features(frames, latents)


def test_all_frames_pass_the_encoder_in_one_forward(stock: Any) -> None:
    _, model = make_pair(stock, 1)
    frames, latents = make_clips()
    seen: list[int] = []
    assert model.encoder is not None
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    model(frames, latents)
    assert seen == [B * T]
