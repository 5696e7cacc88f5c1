"""What the model reads of several clips.

Axes: B clips, T frames, S pixels, N tokens, D token width, C h w latent, M tokens of a caption.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Input = Literal["features", "frames"]


@dataclass(frozen=True)
class Captions:
    """Token ids int64 [B,M] of B captions; mask bool [B,M]: True where a token is no padding."""

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Batch:
    """B clips, on one device.

    inputs: stored tokens float16 [B,T,N,D], or frames uint8 [B,T,3,S,S] for a model with an
    encoder; latents float16 [B,T,C,h,w]; keys: the clips' sample keys, for messages; captions: for
    a model with text.
    """

    inputs: Tensor
    latents: Tensor
    keys: list[str]
    captions: Captions | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; on a GPU in the order of its current stream."""
        ahead = device.type == "cuda"  # others may still read memory that a next batch overwrites
        inputs, latents, *text = (value.to(device, non_blocking=ahead) for value in self.tensors())
        captions = Captions(*text) if text else None
        return replace(self, inputs=inputs, latents=latents, captions=captions)

    def tensors(self) -> list[Tensor]:
        """Everything on the device."""
        text = [self.captions.ids, self.captions.mask] if self.captions else []
        return [self.inputs, self.latents, *text]
