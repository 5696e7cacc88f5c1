"""The frame encoder: the same values however frames are grouped, in threads, compiled or not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from fvlm.core.errors import ParamsError, ShardError
from fvlm.encoders.frames import EncodeParams, FrameEncoder, load_encoder
from fvlm.encoders.vae import load_vae

CPU = torch.device("cpu")
SIZE, NUM_FRAMES = 32, 6
Load = Callable[..., FrameEncoder]


@pytest.fixture
def load(tmp_path: Path, vae_folder: Path) -> Load:
    """load(**params) -> the encoder of a tiny Dinov2Model and AutoencoderKL."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    Dinov2Model(config).save_pretrained(tmp_path / "dino")

    def call(**changes: object) -> FrameEncoder:
        values = {
            "dino": str(tmp_path / "dino"),
            "vae": str(vae_folder),
            "dino_layers": 0,
            "layer": 2,
            "batch_frames": 12,
            "dtype": "float32",
            "compile": False,
        }
        return load_encoder(EncodeParams.model_validate(values | changes), CPU)[0]

    return call


@pytest.fixture
def clips() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, NUM_FRAMES, 3, SIZE, SIZE), np.uint8)


def relative(got: NDArray[np.float16], expected: NDArray[np.float16]) -> float:
    """RMS of the difference over RMS of the expected values."""
    difference = got.astype(np.float64) - expected.astype(np.float64)
    return float(np.sqrt((difference**2).mean() / (expected.astype(np.float64) ** 2).mean()))


def test_clips_keep_their_frames(load: Load, clips: NDArray[np.uint8]) -> None:
    encoder = load()
    tokens, latents = encoder.encode(clips)
    assert tokens.dtype == latents.dtype == np.float16
    assert tokens.shape == (5, NUM_FRAMES, encoder.dino.num_tokens(SIZE), 32)
    assert latents.shape == (5, NUM_FRAMES, *encoder.vae.latent_shape(SIZE))
    with torch.inference_mode():
        one = torch.from_numpy(clips[3, 2:3])
        np.testing.assert_allclose(tokens[3, 2], encoder.dino(one, layer=2)[0], atol=2e-3)
        np.testing.assert_allclose(latents[3, 2], encoder.vae.encode(one)[0], atol=2e-3)


@pytest.mark.parametrize("batch_frames", [1, 4, 7, 1000])
def test_values_hardly_depend_on_the_batch(
    batch_frames: int, load: Load, clips: NDArray[np.uint8]
) -> None:
    """To the rounding of float16: other shapes are summed in another order."""
    expected = load().encode(clips)
    for got, wanted in zip(load(batch_frames=batch_frames).encode(clips), expected, strict=True):
        assert relative(got, wanted) < 1e-4


@pytest.mark.parametrize(("batch_frames", "clips_together"), [(1, 1), (11, 1), (12, 2), (23, 3)])
def test_clips_fill_a_batch(batch_frames: int, clips_together: int, load: Load) -> None:
    assert load(batch_frames=batch_frames).batch_clips(NUM_FRAMES) == clips_together


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_give_the_same_bytes(
    threads: int, load: Load, clips: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load()
    expected = [encoder.encode(clips[n : n + 1]) for n in range(5)]
    counts: list[int] = []
    encode = FrameEncoder.encode

    def counting(self: FrameEncoder, batch: NDArray[np.uint8]) -> object:
        counts.append(torch.get_num_threads())
        return encode(self, batch)

    monkeypatch.setattr(FrameEncoder, "encode", counting)
    torch.set_num_threads(threads)
    try:
        with encoder.ahead() as ahead:
            assert ahead.workers == threads
            got = list(ahead.map(encoder.encode, [clips[n : n + 1] for n in range(5)]))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)
    assert counts == [1] * 5, "a batch on one core"
    for pair, wanted in zip(got, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(pair, wanted, strict=True))


def test_channels_last_changes_the_layout_only(vae_folder: Path) -> None:
    frames = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    codec, _ = load_vae(str(vae_folder))
    weight: Tensor = codec.vae.encoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    found = codec.encode(frames)
    assert found.is_contiguous()
    codec.vae.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(found, codec.encode(frames), rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close_and_keeps_the_residuals_exact(
    load: Load, clips: NDArray[np.uint8]
) -> None:
    encoder = load(dtype="bfloat16")
    assert {value.dtype for value in encoder.vae.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in encoder.dino.parameters()} == {torch.float32}
    for got, wanted in zip(encoder.encode(clips), load().encode(clips), strict=True):
        assert 0 < relative(got, wanted) < 0.03


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own imports
def test_compiled_values_are_close(load: Load, clips: NDArray[np.uint8]) -> None:
    encoder = load(compile=True)
    with encoder.ahead() as ahead:
        found = list(ahead.map(encoder.encode, [clips[:2], clips[2:4], clips[4:]]))
    for got, wanted in zip(zip(*found, strict=True), load().encode(clips), strict=True):
        assert relative(np.concatenate(got), wanted) < 1e-4


def test_what_does_not_fit_into_float16_is_refused(load: Load, clips: NDArray[np.uint8]) -> None:
    encoder = load()
    with torch.no_grad():
        encoder.vae.vae.quant_conv.bias.fill_(1e6)
    with pytest.raises(ShardError, match="not finite in float16"):
        encoder.encode(clips)


def test_a_layer_that_the_encoder_lacks(load: Load) -> None:
    with pytest.raises(ParamsError, match=r"encode\.layer: must be 0 to 3.*got 4"):
        load(layer=4)
