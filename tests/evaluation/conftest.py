"""Two tiny models: one with random weights, one built by hand whose every outcome is known."""

import math
from types import SimpleNamespace
from typing import Any, Protocol, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaModel

from fvlm.model.foveated import FoveatedModel
from fvlm.model.query_attention import ShallowAttention
from tests import tiny

T, N, D, H, LATENT = 5, 10, 16, 24, (4, 4, 4)  # N: CLS and 3 x 3 patches
KEYS = 8  # tokens of a frame of the pointer corpus, each with its own key
VALUE = 2 * KEYS  # where a pointer token holds its value
WIDTH = 2 * KEYS + 2  # even, as the language model wants it; the last is always 0
NOISE = 0.1  # standard deviation that no arm of the pointer corpus can predict


class MakeModel(Protocol):
    """`deep` blocks of query attention, `iterations` fine passes."""

    def __call__(self, *, deep: int = 0, iterations: int = 1) -> FoveatedModel: ...


@pytest.fixture
def make_model() -> MakeModel:
    """Random weights, large enough that every query matters; `deep` blocks of query attention."""

    def make(*, deep: int = 0, iterations: int = 1) -> FoveatedModel:
        torch.manual_seed(1)
        return tiny.foveated(deep=deep, iterations=iterations)

    return make


@pytest.fixture
def clips() -> tuple[Tensor, Tensor]:
    """Seven clips of noise: tokens [7,T,N,D] and latents [7,T,*LATENT]."""
    return torch.randn(7, T, N, D), torch.randn(7, T, *LATENT)


class _LastToken(nn.Module):
    """A language model whose state is the token it just read."""

    config = tiny.llama(
        hidden_size=WIDTH, num_attention_heads=1, attn_implementation="sdpa", num_hidden_layers=0
    )
    layers = ()

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()

    def rotary_emb(self, *_: Tensor, **__: Tensor) -> None:
        """Nothing here depends on places."""

    def forward(self, *, inputs_embeds: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=inputs_embeds)


class _ReadValue(nn.Module):
    """A head that predicts the value which the visual token holds, everywhere."""

    def encode_previous(self, previous: Tensor) -> Tensor:
        return previous

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        return hidden[..., VALUE, None, None, None].expand_as(features)


@pytest.fixture
def pointer_model() -> FoveatedModel:
    """A query of 60 e_k reads the token with key k; a query of 0 reads the mean of all.

    Static and first query are 0; the predicted query is the key that the frame before pointed to.
    """
    model = FoveatedModel(
        language=cast(LlamaModel, _LastToken()),
        attention=ShallowAttention(WIDTH, temperature=1 / math.sqrt(WIDTH)),
        latent_shape=LATENT,
        fine_iterations=1,
    )
    parts = {"head": _ReadValue(), "to_visual": nn.Identity(), "visual_norm": nn.Identity()}
    for name, part in parts.items():
        setattr(model, name, part)
    pointer_to_key = torch.zeros(WIDTH, WIDTH)
    pointer_to_key[:KEYS, KEYS:VALUE] = 60 * torch.eye(KEYS)
    with torch.no_grad():
        model.q_static.zero_()
        model.q_init.zero_()
        model.to_query.weight.copy_(pointer_to_key)
    return model.eval()


@pytest.fixture
def pointer_clips() -> tuple[Tensor, Tensor]:
    """Clips in which frame t points to a key, and its value in frame t+1 is latent t+2, plus noise.

    96 clips of 12 frames. Values are independent N(0,1), so that every wrong token tells nothing.
    """
    generator = torch.Generator().manual_seed(0)
    count, frames = 96, 12
    pointers = torch.randint(KEYS, (count, frames), generator=generator)
    values = torch.randn(count, frames, KEYS, generator=generator)
    keys = torch.eye(KEYS).expand(count, frames, -1, -1)
    pointing = torch.eye(KEYS)[pointers][:, :, None].expand(-1, -1, KEYS, -1)
    spare = torch.zeros(count, frames, KEYS, 1)
    tokens = torch.cat([keys, pointing, values[..., None], spare], dim=-1)
    answers = torch.randn(count, frames, generator=generator)
    rows = torch.arange(count)
    for t in range(2, frames):
        answers[:, t] = values[rows, t - 1, pointers[:, t - 2]]
    noise = NOISE * torch.randn(count, frames, *LATENT, generator=generator)
    return tokens, answers[:, :, None, None, None] + noise
