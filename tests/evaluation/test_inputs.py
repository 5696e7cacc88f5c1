"""A model that takes frames is evaluated as the one that takes their stored tokens."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Dinov2Model, LlamaModel

from fvlm.clips.batch import Batch
from fvlm.encoders.dino import DinoEncoder
from fvlm.evaluation.baselines import fit_baselines
from fvlm.evaluation.losses import evaluate_clips
from fvlm.model.foveated import FoveatedModel
from fvlm.model.query_attention import DeepAttention, ShallowAttention
from fvlm.statistics.arms import ARMS, ClipName, Losses
from tests import tiny

CLIPS, T, L, SIZE, LATENT = 5, 4, 3, 42, (4, 4, 4)


def make_model(stock: Dinov2Model, k: int, *, frames: bool) -> FoveatedModel:
    encoder = DinoEncoder(copy.deepcopy(stock))
    tail = encoder.cut(k)
    torch.manual_seed(3)
    return FoveatedModel(
        language=LlamaModel(tiny.llama(initializer_range=0.2)),
        attention=DeepAttention(tail) if tail else ShallowAttention(16, temperature=0.5),
        latent_shape=LATENT,
        fine_iterations=2,
        encoder=encoder if frames else None,
    ).eval()


def load(inputs: Tensor, latents: Tensor, rows: range) -> Batch:
    chosen = slice(rows.start, rows.stop)
    return Batch(inputs[chosen], latents[chosen], [str(row) for row in rows])


@pytest.mark.parametrize("k", [0, 2])
def test_every_arm_is_the_same_from_frames(k: int) -> None:
    """To float32 rounding: the encoder meets other numbers of frames at once."""
    torch.manual_seed(0)
    stock = tiny.dinov2().eval()
    frames = torch.randint(0, 256, (CLIPS, T, 3, SIZE, SIZE), dtype=torch.uint8)
    latents = torch.randn(CLIPS, T, *LATENT)
    with torch.inference_mode():
        tokens = DinoEncoder(stock)(frames.flatten(0, 1), layer=L - k).unflatten(0, (CLIPS, T))

    def losses(model: FoveatedModel, inputs: Tensor, batch_size: int) -> Losses:
        names = [ClipName(str(clip), str(clip)) for clip in range(CLIPS)]
        clips = partial(load, inputs, latents)
        device = torch.device("cpu")
        return evaluate_clips(
            model,
            clips,
            names,
            batch_size=batch_size,
            seed=0,
            device=device,
            baselines=fit_baselines([latents]),
        )

    expected = losses(make_model(stock, k, frames=False), tokens, CLIPS)
    for batch_size in (1, 2, CLIPS):
        found = losses(make_model(stock, k, frames=True), frames, batch_size)
        for arm in ARMS:
            np.testing.assert_allclose(found[arm], expected[arm], rtol=1e-4, err_msg=arm)
    assert np.abs(expected["fine"] - expected["random"]).max() > 1e-4
