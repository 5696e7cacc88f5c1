"""The encoder equals the stock models, whole, in parts, and split at any block."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig

from fvlm.core.errors import ParamsError, WeightsError
from fvlm.encoders.dino import DinoEncoder, EncoderBlock, EncoderTail, load_dino

MakeFrames = Callable[[int, int], Tensor]
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
CLOSE: Any = {"rtol": 1e-4, "atol": 1e-5}


@torch.no_grad()
def stock_states(stock: Any, frames: Tensor) -> list[Tensor]:
    """What enters each block, and last the final tokens."""
    found = stock((frames.float() / 255 - MEAN) / STD, output_hidden_states=True)
    return [*found.hidden_states[:-1], found.last_hidden_state]


def squares_of(stock: Any) -> list[int]:
    """The pretraining size, a smaller one, a larger one, and one with pixels to spare."""
    patch = stock.config.patch_size
    return [3 * patch, 2 * patch, 5 * patch, 4 * patch + 5]


def test_every_layer_equals_the_stock_model(stock: Any, make_frames: MakeFrames) -> None:
    encoder = DinoEncoder(stock).eval()
    for size in squares_of(stock):
        frames = make_frames(2, size)
        for layer, expected in enumerate(stock_states(stock, frames)):
            tokens = encoder(frames, layer=layer)
            assert tokens.shape == (2, encoder.num_tokens(size), encoder.width)
            torch.testing.assert_close(tokens, expected, **CLOSE)


def test_saved_and_loaded_equals_the_stock_model(
    stock: Any, make_frames: MakeFrames, tmp_path: Path
) -> None:
    stock.save_pretrained(tmp_path)
    encoder, provenance = load_dino(str(tmp_path))
    frames = make_frames(1, squares_of(stock)[0])
    torch.testing.assert_close(
        encoder(frames, layer=encoder.blocks), stock_states(stock, frames)[-1], **CLOSE
    )
    assert not encoder.training
    assert provenance == load_dino(str(tmp_path))[1]
    assert provenance.revision == ""


def test_the_first_blocks_alone_are_an_encoder(
    stock: Any, make_frames: MakeFrames, tmp_path: Path
) -> None:
    stock.save_pretrained(tmp_path)
    whole, provenance = load_dino(str(tmp_path))
    encoder, same = load_dino(str(tmp_path), blocks=2)
    assert same == provenance
    frames = make_frames(2, squares_of(stock)[0])
    assert torch.equal(encoder(frames, layer=1), whole(frames, layer=1))
    assert torch.equal(encoder(frames, layer=2), whole.final_norm(whole(frames, layer=2)))
    with pytest.raises(ParamsError, match=r"encode\.layer: must be 0 to 2"):
        encoder(frames, layer=3)
    again = DinoEncoder.from_config(encoder.config_dict)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(frames, layer=2), encoder(frames, layer=2))
    tail = EncoderTail.from_config(encoder.config_dict, 1)
    tail.load_state_dict(encoder.tail(1).state_dict())
    stored = encoder(frames, layer=1)
    assert torch.equal(tail.eval().forward_tokens(stored), encoder(frames, layer=2))
    with pytest.raises(ParamsError, match=r"encode\.dino_layers: must be 0 \(all\) to \d+, .* 99$"):
        load_dino(str(tmp_path), blocks=99)


def test_original_names_of_dinov2_weights_load(make_frames: MakeFrames, tmp_path: Path) -> None:
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14
    )
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    old = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    }
    weights = {}
    for name, value in model.state_dict().items():
        for new, original in old.items():
            name = name.replace(new, original)
        weights[name] = value
    assert "encoder.layer.0.attention.attention.query.weight" in weights
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    frames = make_frames(1, 42)
    encoder, _ = load_dino(str(tmp_path))
    torch.testing.assert_close(encoder(frames, layer=2), stock_states(model, frames)[-1], **CLOSE)


def test_later_blocks_are_not_computed(stock: Any, make_frames: MakeFrames) -> None:
    encoder = DinoEncoder(stock).eval()
    frames = make_frames(1, 48)
    expected = encoder(frames, layer=1)
    del encoder.layers[1:]
    assert torch.equal(encoder(frames, layer=1), expected)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_tail_continues_the_encoder_exactly(stock: Any, make_frames: MakeFrames, k: int) -> None:
    encoder = DinoEncoder(stock).eval()
    frames = make_frames(2, squares_of(stock)[2])
    stored = encoder(frames, layer=encoder.blocks - k)
    final = encoder.tail(k).forward_tokens(stored)
    assert torch.equal(final, encoder(frames, layer=encoder.blocks))


def test_tail_round_trips_through_json_and_its_own_weights(
    stock: Any, make_frames: MakeFrames
) -> None:
    encoder = DinoEncoder(stock).eval()
    tail = encoder.tail(2)
    own = tail.state_dict()
    assert all(name.startswith(("blocks.0.", "blocks.1.", "final_norm.")) for name in own)
    rebuilt = EncoderTail.from_config(json.loads(json.dumps(tail.config_dict)), 2)
    rebuilt.load_state_dict(own)
    tokens = encoder(make_frames(1, squares_of(stock)[1]), layer=1)
    assert torch.equal(rebuilt.forward_tokens(tokens), tail.forward_tokens(tokens))


def test_tail_is_the_same_in_training_mode(stock: Any, make_frames: MakeFrames) -> None:
    encoder = DinoEncoder(stock).eval()
    tokens = encoder(make_frames(1, 48), layer=2)
    tail = encoder.tail(1)
    assert torch.equal(tail.train().forward_tokens(tokens), tail.eval().forward_tokens(tokens))


def test_cached_keys_and_values_carry_one_more_query(stock: Any, make_frames: MakeFrames) -> None:
    """The query's own path over the cache equals the stock layers under a mask."""
    encoder = DinoEncoder(stock).eval()
    tokens = encoder(make_frames(2, squares_of(stock)[0]), layer=1)
    tail = encoder.tail(2)
    query = torch.randn(2, 1, encoder.width)
    cache = tail.cache_frames(tokens)
    assert len(cache) == 2
    x, blocks = query, cast(list[EncoderBlock], list(tail.blocks))
    for block, (keys, values) in zip(blocks, cache, strict=True):
        own_key, own_value = block.keys_values(x, None)
        attended = nn.functional.scaled_dot_product_attention(
            block.split_heads(block.q(block.norm1(x))),
            torch.cat([keys, own_key], dim=2),
            torch.cat([values, own_value], dim=2),
        )
        x = x + block.scale1(block.out(attended.transpose(1, 2).flatten(2)))
        x = x + block.scale2(block.mlp(block.norm2(x)))
    torch.testing.assert_close(x, masked_reference(stock, tokens, query), **CLOSE)


@torch.no_grad()
def masked_reference(stock: Any, tokens: Tensor, query: Tensor) -> Tensor:
    """The stock layers 1 and 2 over [query, tokens] with a mask in which no token sees the query.

    The query stands first: DINOv3 does not turn the tokens before the patches.
    """
    joined = torch.cat([query, tokens], dim=1)
    mask = torch.zeros(1, 1, joined.shape[1], joined.shape[1])
    mask[..., 1:, 0] = float("-inf")
    dinov3 = isinstance(stock.config, DINOv3ViTConfig)
    extra = {}
    if dinov3:
        extra["position_embeddings"] = stock.rope_embeddings(torch.zeros(1, 3, 48, 48))
    for layer in (stock.model if dinov3 else stock.encoder).layer[1:]:
        joined = layer(joined, mask, **extra)
    return joined[:, :1]


def test_frames_do_not_depend_on_their_batch(stock: Any, make_frames: MakeFrames) -> None:
    encoder = DinoEncoder(stock).eval()
    frames = make_frames(3, 48)
    torch.testing.assert_close(encoder(frames, layer=2)[1:2], encoder(frames[1:2], layer=2))


def test_bfloat16_autocast_stays_close(stock: Any, make_frames: MakeFrames) -> None:
    encoder = DinoEncoder(stock).eval()
    frames = make_frames(2, 48)
    expected = encoder(frames, layer=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = encoder(frames, layer=2)
    assert (tokens - expected).norm() / expected.norm() < 0.02


def test_shapes_and_limits_are_named(stock: Any, make_frames: MakeFrames) -> None:
    encoder = DinoEncoder(stock).eval()
    registers = getattr(stock.config, "num_register_tokens", 0)
    assert (encoder.blocks, encoder.width, encoder.registers) == (3, 32, registers)
    assert encoder.heads == stock.config.num_attention_heads
    with pytest.raises(ParamsError, match=r"decode\.frame_size: must be at least"):
        encoder(make_frames(1, encoder.patch_size - 1), layer=1)
    with pytest.raises(ParamsError, match=r"encode\.layer: must be 0 to 3"):
        encoder(make_frames(1, 48), layer=4)
    with pytest.raises(ParamsError, match=r"model\.query_layers"):
        encoder.tail(4)
    with pytest.raises(TypeError, match="uint8"):
        encoder(make_frames(1, 48).float(), layer=1)
    with pytest.raises(TypeError, match="square"):
        encoder(make_frames(1, 48)[:, :, :32], layer=1)
    with pytest.raises(WeightsError, match="another encoder"):
        encoder.tail(1).forward_tokens(torch.zeros(1, 8 + registers, 32))


def test_small_vits_token_counts() -> None:
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, patch_size=14)
    encoder = DinoEncoder(Dinov2Model(config))
    assert [encoder.num_tokens(size) for size in (224, 252, 256)] == [257, 325, 325]


def test_randomness_in_the_encoder_is_refused(tmp_path: Path) -> None:
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, drop_path_rate=0.1
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="drop_path_rate"):
        load_dino(str(tmp_path))


def test_incomplete_and_damaged_weights_are_refused(stock: Any, tmp_path: Path) -> None:
    stock.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    dropped = next(name for name in weights if "norm2" in name)
    rest = {name: value for name, value in weights.items() if name != dropped}
    save_file(rest, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="1 weights are missing"):
        load_dino(str(tmp_path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"encode\.dino.*cannot be loaded"):
        load_dino(str(tmp_path))


def test_another_kind_of_model_is_refused(language_folder: Path) -> None:
    with pytest.raises(WeightsError, match="'llama' is not supported, only dinov2 and dinov3_vit"):
        load_dino(str(language_folder))
