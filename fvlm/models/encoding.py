"""Frames of several clips through both encoders in one forward each.

Axes: F frames of several clips, S pixels, N tokens, D width, C h w latent.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fvlm.compute import Dtype, autocast
from fvlm.errors import ShardError
from fvlm.models.dino import DinoEncoder
from fvlm.models.vae import VaeCodec
from fvlm.params import Params


class EncodeParams(Params):
    """Section `encode` of params.yaml."""

    dino: str
    vae: str
    layer: int = Field(ge=0)
    batch_frames: int = Field(ge=1)
    dtype: Dtype


@dataclass(frozen=True)
class FrameEncoder:
    """DINO tokens and VAE latents of frames, both from the same pixels, stored as float16."""

    dino: DinoEncoder
    vae: VaeCodec
    params: EncodeParams
    device: torch.device

    def __post_init__(self) -> None:
        self.dino.check_layer(self.params.layer)
        self.dino.to(self.device)
        self.vae.to(self.device)

    def encode(self, frames: NDArray[np.uint8]) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Frames uint8 [F,3,S,S] -> tokens [F,N,D] and latents [F,C,h,w], in `batch_frames` parts.

        Raises ShardError when a value does not fit into float16.
        """
        parts = torch.from_numpy(frames).split(self.params.batch_frames)
        tokens, latents = zip(*(self._encode_batch(part) for part in parts), strict=True)
        return _to_numpy(tokens), _to_numpy(latents)

    @torch.inference_mode()
    def _encode_batch(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        frames = frames.to(self.device, non_blocking=True)
        with autocast(self.device, self.params.dtype):
            return self.dino(frames, layer=self.params.layer), self.vae.encode(frames)


def _to_numpy(parts: tuple[Tensor, ...]) -> NDArray[np.float16]:
    values = torch.cat(parts).to(torch.float16)
    if not bool(torch.isfinite(values).all()):
        raise ShardError("an encoder gave a value that is not finite in float16")
    array: NDArray[np.float16] = values.cpu().numpy()
    return array
