"""From stored frames to a tower's pixels, as its `preprocessor_config.json` says.

Frames are squares already, so that the published "resize the shorter side, crop the centre" is one
resize to the tower's size, and none at all for towers that take any size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fvlm.core.errors import ParamsError
from fvlm.core.io import read_json
from fvlm.weights.sources import PREPROCESSOR, Resolved, unusable

_MODES = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class Preparation:
    """Resize, scale to [0, 1], normalise by channel. `size` in pixels; None: any."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None
    patch: int
    mode: str

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames uint8 [R,3,S,S] -> float32 [R,3,size,size].

        Raises ParamsError when a frame is smaller than one patch.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            raise TypeError(f"expected uint8 [R,3,S,S], got {frames.dtype} {list(frames.shape)}")
        stored = frames.shape[-1]
        if self.size is None and stored < self.patch:
            raise ParamsError(
                f"decode.frame_size: must be at least {self.patch}, one patch of a tower of "
                f"uncertainty.towers, got {stored}"
            )
        pixels = frames.float()
        if self.size not in (None, stored):
            pixels = F.interpolate(pixels, size=(self.size,) * 2, mode=self.mode, antialias=True)
            pixels = pixels.round_().clamp_(0, 255)  # what an image file would hold
        mean, std = (
            torch.tensor(values, device=frames.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (pixels / 255 - mean) / std


def read_preparation(resolved: Resolved, *, size: int | None, patch: int) -> Preparation:
    """The normalisation that the model was trained with.

    Raises WeightsError when the model's folder does not say it, or asks for another one.
    """
    source, path = resolved.provenance.source, resolved.folder / PREPROCESSOR
    if not path.is_file():
        raise unusable(source, "tower", f"{resolved.folder} holds no {PREPROCESSOR}")
    config = read_json(path)
    try:
        mean, std = tuple(map(float, config["image_mean"])), tuple(map(float, config["image_std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise unusable(source, "tower", f"{path}: image_mean, image_std: {error!r}") from None
    resample, factor = config.get("resample", 3), config.get("rescale_factor", 1 / 255)
    if len(mean) != 3 or len(std) != 3 or abs(factor * 255 - 1) > 1e-6 or resample not in _MODES:
        raise unusable(
            source,
            "tower",
            f"{path}: expected 3 means, 3 deviations, rescale_factor 1/255 and resample 2 or 3",
        )
    return Preparation(mean, std, size, patch, _MODES[resample])
