"""Latents are scaled posterior means: deterministic, per frame, in SD's layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvlm.core.errors import ParamsError, WeightsError
from fvlm.encoders.vae import LatentGrid, load_vae

MakeFrames = Callable[[int, int], Tensor]


@torch.no_grad()
def test_latents_are_the_scaled_posterior_mean(vae_folder: Path, make_frames: MakeFrames) -> None:
    codec, _ = load_vae(str(vae_folder))
    stock = AutoencoderKL.from_pretrained(vae_folder)
    frames = make_frames(2, 16)
    posterior = stock.encode(frames.float() / 127.5 - 1).latent_dist
    latents = codec.encode(frames)
    assert latents.dtype == torch.float32
    assert latents.shape == (2, *codec.latent_shape(16)) == (2, 4, 4, 4)
    torch.testing.assert_close(latents, posterior.mean * 0.18215)
    assert torch.equal(latents, codec.encode(frames))
    torch.testing.assert_close(codec.encode(frames[1:]), latents[1:])


@torch.no_grad()
def test_decode_inverts_the_scaling(vae_folder: Path, make_frames: MakeFrames) -> None:
    codec, _ = load_vae(str(vae_folder))
    stock = AutoencoderKL.from_pretrained(vae_folder)
    frames = make_frames(2, 16)
    mean = stock.encode(frames.float() / 127.5 - 1).latent_dist.mean
    expected = ((stock.decode(mean).sample + 1) * 127.5).clamp(0, 255)
    decoded = codec.decode(codec.encode(frames))
    assert decoded.dtype == torch.uint8
    assert decoded.shape == frames.shape
    assert (decoded.float() - expected).abs().max() <= 0.51


def test_sizes_must_fit_the_reduction(vae_folder: Path, make_frames: MakeFrames) -> None:
    codec, _ = load_vae(str(vae_folder))
    assert codec.grid.down_factor == 4
    with pytest.raises(ParamsError, match=r"decode\.frame_size: must be a multiple of 4.*got 18"):
        codec.encode(make_frames(1, 18))


@torch.no_grad()
def test_tiny_autoencoders_load_too(tmp_path: Path, make_frames: MakeFrames) -> None:
    stock = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).eval()
    stock.save_pretrained(tmp_path)
    codec, _ = load_vae(str(tmp_path))
    frames = make_frames(2, 32)
    latents = codec.encode(frames)
    assert latents.shape == (2, *codec.latent_shape(32)) == (2, 4, 4, 4)
    torch.testing.assert_close(latents, stock.encode(frames.float() / 127.5 - 1).latents)
    assert codec.decode(latents).shape == frames.shape


@pytest.mark.parametrize("stock", [AutoencoderKL, AutoencoderTiny])
def test_what_a_configuration_leaves_out_is_as_the_library_has_it(stock: Any) -> None:
    config = dict(stock().config)
    grid = LatentGrid.of(stock.__name__, config)
    assert grid.channels == config.pop("latent_channels")
    assert LatentGrid.of(stock.__name__, config) == grid


@torch.no_grad()
def test_attention_names_of_published_sd_autoencoders_load(
    vae_folder: Path, make_frames: MakeFrames
) -> None:
    frames = make_frames(1, 16)
    expected = load_vae(str(vae_folder))[0].encode(frames)
    path = vae_folder / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, value in load_file(path).items():
        for new, original in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{original}.")
        weights[name] = value
    assert "encoder.mid_block.attentions.0.query.weight" in weights
    save_file(weights, path, metadata={"format": "pt"})
    assert torch.equal(load_vae(str(vae_folder))[0].encode(frames), expected)


def test_codec_is_frozen_and_in_evaluation_mode(vae_folder: Path) -> None:
    codec, provenance = load_vae(str(vae_folder))
    assert not codec.vae.training
    assert not any(value.requires_grad for value in codec.parameters())
    assert provenance == load_vae(str(vae_folder))[1]


def test_unusable_autoencoders_are_refused(vae_folder: Path) -> None:
    path = vae_folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("encoder.conv_in.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"encode\.vae.*encoder\.conv_in\.weight"):
        load_vae(str(vae_folder))
    config = json.loads((vae_folder / "config.json").read_text())
    for change, message in (({"shift_factor": 0.1}, "shift_factor"), ({"_class_name": "X"}, "'X'")):
        (vae_folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(WeightsError, match=message):
            load_vae(str(vae_folder))
