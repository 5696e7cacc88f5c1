"""Tiny random vision towers of the real classes, saved to disk as a hub would deliver them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from fvlm.uncertainty.sampling import UncertaintyParams
from fvlm.uncertainty.tower import Tower, load_tower

SHAPE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
FIXED: dict[str, Any] = SHAPE | {"intermediate_size": 24, "image_size": 32, "patch_size": 8}
TEXT: dict[str, Any] = SHAPE | {
    "intermediate_size": 24,
    "vocab_size": 8,
    "max_position_embeddings": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
DINO: dict[str, Any] = SHAPE | {"image_size": 32, "patch_size": 8}
MODELS: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**DINO)),
    "dinov2-swiglu": lambda: Dinov2Model(Dinov2Config(**DINO, use_swiglu_ffn=True)),
    "dinov3": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(**DINO, intermediate_size=24, num_register_tokens=3)
    ),
    "dinov3-gated": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(**DINO, intermediate_size=24, num_register_tokens=0, use_gated_mlp=True)
    ),
    "clip": lambda: CLIPModel(
        CLIPConfig(
            text_config=TEXT, vision_config=FIXED | {"projection_dim": 12}, projection_dim=12
        )
    ),
    "clip-projected": lambda: CLIPVisionModelWithProjection(
        CLIPVisionConfig(**FIXED, projection_dim=12)
    ),
    "clip-vision": lambda: CLIPVisionModel(CLIPVisionConfig(**FIXED)),
    "siglip2": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=FIXED)),
    "siglip2-vision": lambda: SiglipVisionModel(SiglipVisionConfig(**FIXED)),
}


def save_tower(name: str, folder: Path) -> Path:
    """The model with random weights everywhere (fresh norms and biases would hide mistakes)."""
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder)
    config = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.25, 0.2], "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: save_tower(name, tmp_path / name)


@pytest.fixture
def tower_of(folder_of: Callable[[str], Path]) -> Callable[[str], Tower]:
    return lambda name: load_tower(str(folder_of(name)))[0]


@pytest.fixture
def frames() -> Tensor:
    """uint8 [3,3,32,32]."""
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture
def params_of() -> Callable[..., UncertaintyParams]:
    """make(**values), also values of its one tower."""

    def make(**values: Any) -> UncertaintyParams:
        tower: dict[str, Any] = {"model": "tower", "sites": ["*"], "batch_size": 4}
        tower |= {name: values.pop(name) for name in tower.keys() & values.keys()}
        default: dict[str, Any] = {
            "towers": {"tiny": tower},
            "p": 0.1,
            "passes": 8,
            "snapshots": [4],
            "trials": 2,
            "max_clips": 10,
            "frames_per_clip": 2,
            "dtype": "float32",
            "compile": False,
            "blur_sigma": 1.0,
            "downsample": 4,
            "bootstrap_samples": 50,
            "seed": 0,
        }
        return UncertaintyParams(**default | values)

    return make
