"""What the model reads of several clips.

Axes: B clips, T frames, S pixels, N tokens, D token width, C h w latent.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Input = Literal["features", "frames"]


@dataclass(frozen=True)
class Batch:
    """B clips, on one device.

    inputs: stored tokens float16 [B,T,N,D], or frames uint8 [B,T,3,S,S] for a model with an
    encoder; latents float16 [B,T,C,h,w]; keys: the clips' sample keys, for messages.
    """

    inputs: Tensor
    latents: Tensor
    keys: list[str]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return replace(
            self,
            inputs=self.inputs.to(device, non_blocking=True),
            latents=self.latents.to(device, non_blocking=True),
        )
