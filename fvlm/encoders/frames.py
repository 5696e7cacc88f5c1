"""Frames of several clips through both encoders in one forward each.

Axes: B clips, T frames of a clip, S pixels, N tokens, D width, C h w latent.
"""

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fvlm.core.device import Dtype, autocast
from fvlm.core.errors import ShardError
from fvlm.core.params import Params
from fvlm.core.prefetch import Ahead, one_core_each
from fvlm.encoders.dino import DinoEncoder, load_dino
from fvlm.encoders.vae import VaeCodec, load_vae
from fvlm.weights.sources import Provenance

# Batches on their way where one is computed at a time: one is read, one computed, one copied back.
_IN_TURN = 3


class EncodeParams(Params):
    """Section `encode` of params.yaml."""

    dino: str
    dino_layers: int = Field(ge=0)
    vae: str
    layer: int = Field(ge=0)
    tokens: bool = True
    batch_frames: int = Field(ge=1)
    dtype: Dtype
    compile: bool


@dataclass(frozen=True)
class FrameEncoder:
    """DINO tokens and VAE latents of frames, both from the same pixels, stored as float16.

    With bfloat16, DINO runs under autocast, so that the stream of its residuals stays float32. The
    autoencoder is converted: its stream is rounded to bfloat16 under autocast, too, and the error
    is the same (0.59% of the latents' RMS for assets/vae), without a float32 copy for every norm.
    """

    dino: DinoEncoder
    vae: VaeCodec
    params: EncodeParams
    device: torch.device
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self.dino.check_layer(self.params.layer)
        self.dino.to(self.device)
        self.vae.to(self.device)
        if self.params.dtype == "bfloat16":
            self.vae.to(torch.bfloat16)
        if self.params.compile:
            self.dino.compile()
            self.vae.compile()

    @property
    def in_turn(self) -> bool:
        """One forward at a time, with all cores or the GPU: more would only take more memory."""
        return self.device.type != "cpu" or self.params.compile

    def batch_clips(self, num_frames: int) -> int:
        """Clips of `num_frames` that fill a forward of `batch_frames`, at least one."""
        return max(1, self.params.batch_frames // num_frames)

    def ahead(self) -> AbstractContextManager[Ahead]:
        """Threads for `encode`, as many as the device can use."""
        return Ahead(workers=_IN_TURN) if self.in_turn else one_core_each()

    def encode(self, clips: NDArray[np.uint8]) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Clips uint8 [B,T,3,S,S] -> tokens [B,T,N,D] and latents [B,T,C,h,w].

        In parts of `batch_frames` frames. May be called from several threads. Raises ShardError
        when a value does not fit into float16.
        """
        parts = torch.from_numpy(clips).flatten(0, 1).split(self.params.batch_frames)
        tokens, latents = zip(*(self._encode_batch(part) for part in parts), strict=True)
        return _to_numpy(tokens, clips.shape[:2]), _to_numpy(latents, clips.shape[:2])

    def encode_latents(self, clips: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Only the latents, the same as of `encode`; the patch encoder does not run."""
        parts = torch.from_numpy(clips).flatten(0, 1).split(self.params.batch_frames)
        return _to_numpy(tuple(self._latents_of(part) for part in parts), clips.shape[:2])

    @torch.inference_mode()
    def _latents_of(self, frames: Tensor) -> Tensor:
        with self._turn if self.in_turn else nullcontext():
            latents: Tensor = self.vae(frames.to(self.device, non_blocking=True))
            return latents.to(torch.float16)

    @torch.inference_mode()
    def _encode_batch(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        with self._turn if self.in_turn else nullcontext():
            frames = frames.to(self.device, non_blocking=True)
            with autocast(self.device, self.params.dtype):
                tokens = self.dino(frames, layer=self.params.layer)
            return tokens.to(torch.float16), self.vae(frames).to(torch.float16)


def load_encoder(params: EncodeParams, device: torch.device) -> tuple[FrameEncoder, dict[str, Any]]:
    """The encoder, and what the manifest tells of it: sources, revisions, hashes, layer, scale.

    Raises WeightsError when a source cannot be loaded, ParamsError when it has no such layer.
    """
    dino, dino_source = load_dino(params.dino, blocks=params.dino_layers)
    vae, vae_source = load_vae(params.vae)
    return FrameEncoder(dino, vae, params, device), {
        "dino": _described(dino_source, blocks=dino.blocks, layer=params.layer),
        "vae": _described(vae_source, scaling_factor=vae.scaling_factor),
    }


def _described(source: Provenance, **facts: float) -> dict[str, Any]:
    return asdict(source) | facts


def _to_numpy(parts: tuple[Tensor, ...], leading: tuple[int, ...]) -> NDArray[np.float16]:
    """Waits for a GPU here, outside of the lock: the next batch is under way meanwhile."""
    values = torch.cat(parts).unflatten(0, leading)
    if not bool(torch.isfinite(values).all()):
        raise ShardError("an encoder gave a value that is not finite in float16")
    array: NDArray[np.float16] = values.cpu().numpy()
    return array
