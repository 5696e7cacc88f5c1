"""The SD-compatible autoencoder: frames to latents and back.

Axes: B frames, S pixels, C latent channels, h = w = S / down_factor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fvlm.core.errors import ParamsError
from fvlm.core.io import read_json
from fvlm.weights.loading import LOAD_ERRORS, check_complete
from fvlm.weights.resolve import resolve
from fvlm.weights.sources import CONFIG, Provenance, unusable

# Classes of diffusers, and where their configurations list the encoder's levels.
_LEVELS = {
    "AutoencoderKL": "block_out_channels",
    "AutoencoderTiny": "encoder_block_out_channels",
}


@dataclass(frozen=True)
class LatentGrid:
    """How many latent channels an autoencoder has, and by how much it reduces frames."""

    channels: int
    down_factor: int

    @classmethod
    def of(cls, class_name: str, config: Mapping[str, Any]) -> "LatentGrid":
        """Of an autoencoder of this class; the library's own default is 4 channels."""
        levels = config[_LEVELS[class_name]]
        return cls(int(config.get("latent_channels", 4)), 2 ** (len(levels) - 1))

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """(C,h,w) for frames of `size` pixels; ParamsError when it is not a whole number."""
        if size < self.down_factor or size % self.down_factor:
            raise ParamsError(
                f"decode.frame_size: must be a multiple of {self.down_factor}, by which the "
                f"autoencoder of encode.vae reduces frames, got {size}"
            )
        return self.channels, size // self.down_factor, size // self.down_factor


class VaeCodec(nn.Module):
    """Frames uint8 [B,3,S,S] <-> latents float32 [B,C,h,w], scaled to about unit variance."""

    def __init__(self, vae: Any) -> None:
        """`vae` is an AutoencoderKL or AutoencoderTiny."""
        super().__init__()
        self.vae = vae
        self.scaling_factor = float(vae.config.scaling_factor)
        self.grid = LatentGrid.of(type(vae).__name__, vae.config)

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """(C,h,w) for frames of `size` pixels; ParamsError when it is not a whole number."""
        return self.grid.latent_shape(size)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames uint8 [B,3,S,S] -> posterior mean x scaling factor, float32 [B,C,h,w].

        The mean, never a draw: the same frames give the same latents.
        """
        self.latent_shape(frames.shape[-1])
        pixels = frames.float() / 127.5 - 1
        encoded = self.vae.encode(pixels.to(self._dtype()))
        mean: Tensor = (
            encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        )
        return (mean.float() * self.scaling_factor).contiguous()

    def forward(self, frames: Tensor) -> Tensor:
        """`encode`, the direction that `compile` is for."""
        return self.encode(frames)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B,C,h,w] as from `encode` -> frames uint8 [B,3,S,S], for pictures."""
        decoded = self.vae.decode((latents / self.scaling_factor).to(self._dtype())).sample
        pixels: Tensor = decoded.float()
        return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).contiguous()

    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.vae.dtype
        return dtype


def load_vae(source: str) -> tuple[VaeCodec, Provenance]:
    """An AutoencoderKL (or AutoencoderTiny) in diffusers' format, float32, evaluation mode, frozen.

    Raises WeightsError when the source cannot be loaded.
    """
    import diffusers  # takes seconds, and most that import this module load no autoencoder

    resolved = resolve(source, kind="vae")
    name = check_config(source, read_json(resolved.folder / CONFIG))
    try:
        vae, report = getattr(diffusers, name).from_pretrained(
            resolved.folder,
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            low_cpu_mem_usage=False,  # the other way leaves missing weights on the meta device
        )
    except LOAD_ERRORS as error:
        raise unusable(source, "vae", f"cannot be loaded: {error}") from None
    check_complete(report, source, "vae")
    # On a CPU the convolutions run about 1.4 times as fast over channels-last weights.
    codec = VaeCodec(vae.to(memory_format=torch.channels_last))
    return codec.eval().requires_grad_(False), resolved.provenance


def check_config(source: str, config: Mapping[str, Any]) -> str:
    """The name of the autoencoder's class; WeightsError when it is of no use here."""
    name = config.get("_class_name")
    if name not in _LEVELS:
        problem = f"class {name!r} is not supported, only {' and '.join(_LEVELS)}"
        raise unusable(source, "vae", problem)
    if config.get("shift_factor"):
        raise unusable(source, "vae", "latents with a shift_factor are not SD-compatible")
    return str(name)
