"""What the model reads of several clips.

Axes: B clips, T frames, S pixels, N tokens, D token width, C h w latent, M tokens of a caption.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Input = Literal["features", "frames"]
TENSORS = ("inputs", "latents", "captions", "rejected", "reference")  # fields of a batch


@dataclass(frozen=True)
class Captions:
    """Token ids int64 [B,M] of B texts; mask bool [B,M]: True where a token is no padding.

    For a model that answers: counted bool [B,M], the tokens of the answer, whose loss counts; None:
    all that are no padding. question: texts in front of the video, where they stand there.
    """

    ids: Tensor
    mask: Tensor
    counted: Tensor | None = None
    question: "Captions | None" = None

    def to(self, device: torch.device, *, non_blocking: bool) -> "Captions":
        """The same texts on a device."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=non_blocking)

        return Captions(
            moved(self.ids),
            moved(self.mask),
            None if self.counted is None else moved(self.counted),
            self.question and self.question.to(device, non_blocking=non_blocking),
        )

    def tensors(self) -> list[Tensor]:
        """All of its tensors."""
        counted = [] if self.counted is None else [self.counted]
        return [self.ids, self.mask, *counted, *(self.question.tensors() if self.question else [])]


@dataclass(frozen=True)
class Batch:
    """B clips, on one device.

    inputs: stored tokens float16 [B,T,N,D], or frames uint8 [B,T,3,S,S] for a model with an
    encoder; latents float16 [B,T,C,h,w]; keys: the clips' sample keys, for messages; captions: for
    a model with text. rejected: of questions whose better answer stands in `captions`, with
    reference float32 [B,2,2]: log-probabilities of both answers (chosen, rejected) in both passes
    (coarse, fine) of the model that the training starts from.
    """

    inputs: Tensor
    latents: Tensor
    keys: list[str]
    captions: Captions | None = None
    rejected: Captions | None = None
    reference: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; on a GPU in the order of its current stream."""
        ahead = device.type == "cuda"  # others may still read memory that a next batch overwrites
        held = {name: getattr(self, name) for name in TENSORS}
        moved = {
            name: value.to(device, non_blocking=ahead)
            for name, value in held.items()
            if value is not None
        }
        return replace(self, **moved)

    def tensors(self) -> list[Tensor]:
        """Everything on the device."""
        texts = [text for text in (self.captions, self.rejected) if text]
        reference = [] if self.reference is None else [self.reference]
        return [
            *(self.inputs, self.latents, *reference),
            *(tensor for text in texts for tensor in text.tensors()),
        ]
