"""Tiny random models of the real classes, saved to disk as a hub would deliver them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from fvlm.model.captions import Text
from fvlm.model.foveated import FoveatedModel
from tests import tiny

ENCODERS = {
    "dinov2": lambda: Dinov2Model(
        Dinov2Config(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=42,
            patch_size=14,
        )
    ),
    "dinov2-swiglu": lambda: Dinov2Model(
        Dinov2Config(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=42,
            patch_size=14,
            use_swiglu_ffn=True,
            qkv_bias=False,
        )
    ),
    "dinov3": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=48,
            patch_size=16,
            num_register_tokens=4,
        )
    ),
    "dinov3-gated": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=48,
            patch_size=16,
            num_register_tokens=0,
            use_gated_mlp=True,
        )
    ),
}


@pytest.fixture(params=ENCODERS)
def stock(request: pytest.FixtureRequest) -> Any:
    """A stock encoder in evaluation mode, every kind of weight away from its neutral value."""
    return scrambled(ENCODERS[request.param]())


@pytest.fixture
def language_folder(tmp_path: Path) -> Path:
    """A Llama model of 3 blocks with its output head, as model hubs publish them."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    scrambled(LlamaForCausalLM(config)).save_pretrained(tmp_path / "language")
    return tmp_path / "language"


@pytest.fixture
def vae_folder(tmp_path: Path) -> Path:
    """An AutoencoderKL that reduces frames by 4."""
    scrambled(tiny.vae(8, 8, 16)).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture
def make_frames() -> Callable[..., Tensor]:
    """frames(B, size) -> random uint8 [B,3,size,size]."""

    def make(count: int, size: int) -> Tensor:
        return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)

    return make


@pytest.fixture
def make_model() -> Callable[..., FoveatedModel]:
    """model(deep=k, iterations=K) for frames of 3 x 3 patches, D 16, H 24, V 16, latents [4,4,4].

    Random weights, large enough that every input changes every output by more than rounding.
    """

    def make(
        *, deep: int = 0, iterations: int = 1, text: Text = "none", tied: bool = True
    ) -> FoveatedModel:
        torch.manual_seed(1)
        sizes = {"num_hidden_layers": 3, "vocab_size": 16, "initializer_range": 0.2}
        return tiny.foveated(
            deep=deep,
            iterations=iterations,
            language=tiny.llama(**sizes),
            text=text,
            output=None if tied else nn.Linear(24, 16, bias=False),
        )

    return make


@pytest.fixture
def clips() -> tuple[Tensor, Tensor]:
    """Seven clips of noise: tokens [7,5,10,16] and latents [7,5,4,4,4]."""
    return torch.randn(7, 5, 10, 16), torch.randn(7, 5, 4, 4, 4)


def scrambled(model: Any) -> Any:
    """Random weights everywhere: fresh norms, biases and LayerScale would hide mistakes."""
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return model.eval()
