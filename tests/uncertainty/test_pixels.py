"""Pixels as the published preprocessing makes them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fvlm.core.errors import ParamsError, WeightsError
from fvlm.uncertainty.pixels import Preparation, read_preparation
from fvlm.weights.resolve import resolve

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.mark.parametrize(("size", "mode", "number"), [(24, "bicubic", 3), (48, "bilinear", 2)])
def test_agrees_with_the_stock_image_processor(size: int, mode: str, number: int) -> None:
    y, x = np.mgrid[:32, :32]
    frame = np.stack([x * 8, y * 8, (x + y) * 4], axis=-1).astype(np.uint8)
    stock = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(MEAN),
        image_std=list(STD),
        resample=number,
    )
    expected = stock(Image.fromarray(frame), return_tensors="pt")["pixel_values"]
    frames = torch.from_numpy(frame).permute(2, 0, 1)[None]
    found = Preparation(MEAN, STD, size, 8, mode)(frames)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1.01 / 255 / min(STD)  # rounded to another level


def test_towers_of_any_size_get_the_pixels_as_they_are(frames: Tensor) -> None:
    found = Preparation((0.5,) * 3, (0.5,) * 3, None, 8, "bicubic")(frames)
    torch.testing.assert_close(found, frames / 127.5 - 1)


def test_frames_smaller_than_a_patch(frames: Tensor) -> None:
    with pytest.raises(ParamsError, match=r"decode\.frame_size: must be at least 33, .* got 32"):
        Preparation(MEAN, STD, None, 33, "bicubic")(frames)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image_mean": None}, "image_mean, image_std"),
        ({"image_std": [1.0]}, "expected 3 means"),
        ({"rescale_factor": 1.0}, "rescale_factor 1/255"),
        ({"resample": 0}, "resample 2 or 3"),
    ],
)
def test_preprocessing_that_is_not_understood(
    folder_of: Callable[[str], Path], change: dict[str, object], problem: str
) -> None:
    folder = folder_of("dinov2")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=problem):
        read_preparation(resolve(str(folder), kind="tower"), size=None, patch=8)


def test_a_model_without_its_preprocessing(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("dinov2")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"uncertainty\.towers: .* holds no preprocessor_config"):
        read_preparation(resolve(str(folder), kind="tower"), size=None, patch=8)
