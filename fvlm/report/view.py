"""One clip as the model saw it: where its queries looked and what it predicted, ready to draw.

Axes: T frames, S pixels, N tokens, D token width, C h w latent.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fvlm.clips.batch import Batch
from fvlm.encoders.vae import VaeCodec
from fvlm.evaluation.attention import (
    cls_share,
    entropy_share,
    over_patches,
    peak_times_uniform,
    query_similarity,
)
from fvlm.evaluation.baselines import persistence_losses
from fvlm.model.foveated import FoveatedModel, frame_losses
from fvlm.model.inspect import InspectedPass, inspect_clips

Frames = NDArray[np.uint8]
Values = NDArray[np.float32]


@dataclass(frozen=True)
class PassView:
    """Attention of one pass over a clip.

    maps [T,side,side]: each patch's share of the attention that patches get, in multiples of
    uniform attention; similarity [T,T]: cosine of the queries of every two frames; means over the
    frames: entropy over the patches, as a share of that of uniform attention; peak: largest patch,
    in multiples of uniform; cls_share: share of CLS and registers in the attention.
    """

    maps: Values
    similarity: Values
    entropy: float
    peak: float
    cls_share: float

    @property
    def fixations(self) -> list[tuple[float, float]]:
        """For each frame the centre (x, y) of the patch with most attention, 0 to 1."""
        side = self.maps.shape[-1]
        peaks = self.maps.reshape(len(self.maps), -1).argmax(axis=1)
        return [((peak % side + 0.5) / side, (peak // side + 0.5) / side) for peak in peaks]


@dataclass(frozen=True)
class ClipView:
    """frames [T,S,S,3] RGB; seconds: T times from the clip's start; passes by name, in order.

    decoded: by name, latents through the autoencoder's decoder [T,S,S,3]: `actual` (what a perfect
    prediction would give), `coarse` and `fine` as predicted. `persistence` is `actual` one frame
    late. latents [T,C,h,w]: `coarse` and `fine` as predicted. losses: mean squared error of the
    latent by arm [T]; NaN where there is no prediction.
    """

    frames: Frames
    seconds: list[float]
    passes: dict[str, PassView]
    decoded: dict[str, Frames]
    latents: dict[str, Values]
    losses: dict[str, Values]

    @property
    def fine(self) -> str:
        """Name of the last fine pass."""
        return [name for name in self.passes if name.startswith("fine")][-1]


@torch.inference_mode()
def view_clip(
    model: FoveatedModel,
    vae: VaeCodec,
    *,
    frames: Frames,
    batch: Batch,
    seconds: list[float],
) -> ClipView:
    """Run the model over a batch of one clip with the frames uint8 [T,3,S,S].

    Model and autoencoder must be on the device of the batch.
    """
    latents = batch.latents.float()
    found = inspect_clips(model, batch.inputs, latents, batch.captions)
    names = dict(zip(found.passes, pass_names(len(found.passes) - 2), strict=True))
    predicted = {"coarse": found.passes["coarse"].latents}
    predicted["fine"] = found.passes[f"fine_{len(names) - 2}"].latents
    pictured = {"actual": latents} | predicted
    losses = {name: frame_losses(value, latents)[0] for name, value in predicted.items()}
    losses["persistence"] = persistence_losses(latents)[0]
    return ClipView(
        frames=np.ascontiguousarray(frames.transpose(0, 2, 3, 1)),
        seconds=seconds,
        passes={label: _view_pass(found.passes[name], found.grid) for name, label in names.items()},
        decoded={name: _decode(vae, value[0]) for name, value in pictured.items()},
        latents={name: value[0].cpu().numpy() for name, value in predicted.items()},
        losses={name: value.cpu().numpy() for name, value in losses.items()},
    )


def pass_names(fine_passes: int) -> list[str]:
    """Names of a model's passes for people: a single fine pass needs no number."""
    fine = ["fine"] if fine_passes == 1 else [f"fine {k}" for k in range(1, fine_passes + 1)]
    return ["coarse", *fine, "autoregressive"]


def _view_pass(found: InspectedPass, grid: tuple[int, int]) -> PassView:
    attention = found.attention[0]
    shares = over_patches(attention)
    return PassView(
        maps=(shares * shares.shape[-1]).unflatten(-1, grid).cpu().numpy(),
        similarity=query_similarity(found.queries[0]).cpu().numpy(),
        entropy=float(entropy_share(attention).mean()),
        peak=float(peak_times_uniform(attention).mean()),
        cls_share=float(cls_share(attention).mean()),
    )


def _decode(vae: VaeCodec, latents: Tensor) -> Frames:
    """Latents [T,C,h,w] -> uint8 [T,S,S,3], frame by frame: a decoder needs much memory."""
    decoded = torch.cat([vae.decode(latent[None].float()) for latent in latents])
    frames: Frames = decoded.permute(0, 2, 3, 1).cpu().numpy()
    return frames
