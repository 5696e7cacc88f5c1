"""The small autoencoder's training: a linear start that reconstructs, steps, weights that load."""

from argparse import Namespace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tools.vae.evaluate import Example, across_ranking, psnr_db, reconstruct, typical_frame
from tools.vae.start import start_linear
from tools.vae.train import CONFIG, save_vae, spread_frames, train

SECONDS = 3.0  # a step takes that long on the test's clock


@pytest.fixture(scope="module")
def crops() -> Tensor:
    """Smooth pictures, uint8 [N,128,128,3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    frames = torch.from_numpy(coarse).permute(0, 3, 1, 2).float()
    smooth = torch.nn.functional.interpolate(frames, (128, 128), mode="bicubic").clamp(0, 255)
    return smooth.byte().permute(0, 2, 3, 1)


@pytest.fixture
def vae(crops: Tensor) -> AutoencoderKL:
    torch.manual_seed(0)
    model = AutoencoderKL(**CONFIG)
    start_linear(model, spread_frames(crops, 8))
    return model.eval()


def test_the_linear_start_reconstructs(vae: AutoencoderKL, crops: Tensor) -> None:
    frames = crops.numpy()
    mean = np.broadcast_to(frames.mean((1, 2), keepdims=True), frames.shape)
    assert psnr_db(frames, reconstruct(vae, frames)) > psnr_db(frames, mean) + 5


def test_two_steps_move_the_weights_which_are_saved(
    vae: AutoencoderKL, crops: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate of the first step is 0."""
    clock = count()
    monkeypatch.setattr("time.perf_counter", lambda: SECONDS * next(clock))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    options = Namespace(seed=0, lr=1e-3, batch=2, minutes=1.5 * SECONDS / 60)
    average = train(vae, crops, options)
    assert next(clock) == 3  # the beginning and two steps
    after = average.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert len(moved) == len(after)
    save_vae(average, tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    frames = crops.numpy()[:2]
    assert psnr_db(reconstruct(average, frames), reconstruct(loaded, frames)) > 40


def test_the_sheet_shows_the_ranking_from_its_lowest_to_its_highest() -> None:
    """Not a choice by name, which would show the good and the bad ones as it falls out."""
    none = np.zeros((1, 1, 3), np.uint8)
    clips = [Example(f"clip {n}", none, none, float(n * 7 % 11)) for n in range(11)]
    assert [clip.psnr_db for clip in across_ranking(clips, 3)] == [0.0, 5.0, 10.0]
    assert len(across_ranking(clips, 20)) == 11


def test_a_clip_is_shown_by_the_frame_nearest_to_its_mean() -> None:
    frames = np.full((3, 8, 8, 3), 100, np.uint8)
    restored = np.stack([frame + error for frame, error in zip(frames, (1, 6, 90), strict=True)])
    shown = typical_frame("a", frames, restored.astype(np.uint8))
    assert shown.restored[0, 0, 0] == 106
    assert shown.psnr_db == pytest.approx(psnr_db(frames, restored))
