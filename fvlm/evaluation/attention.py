"""How sharply the queries look: figures of the attention of the passes.

What a query gives to itself (deep attention) is left out: the rest is taken as its attention over
the N tokens of the frame. Uniform attention has entropy ln N and a peak of 1 / N.

Axes: B batch, T frames, N tokens (CLS, registers, patches), D token width.
"""

import math

import torch
from torch import Tensor

from fvlm.core.progress import Progress
from fvlm.evaluation.losses import LoadClips
from fvlm.model.foveated import FoveatedModel, PassOutput


def over_tokens(attention: Tensor) -> Tensor:
    """Attention [..,N] as a distribution over the tokens, float32."""
    values = attention.float()
    shares: Tensor = values / values.sum(dim=-1, keepdim=True)
    return shares


def entropy_share(attention: Tensor) -> Tensor:
    """Entropy of attention [..,N] as a share of that of uniform attention, ln N; 0 to 1."""
    shares = over_tokens(attention)
    entropy: Tensor = torch.special.entr(shares).sum(dim=-1)
    return entropy / math.log(shares.shape[-1])


def peak_times_uniform(attention: Tensor) -> Tensor:
    """The largest share of attention [..,N] in multiples of uniform attention's 1 / N; 1 to N."""
    return over_tokens(attention).amax(dim=-1) * attention.shape[-1]


def query_similarity(queries: Tensor) -> Tensor:
    """Cosine of the queries [..,T,D] of every two frames [..,T,T]."""
    directions = torch.nn.functional.normalize(queries.float(), dim=-1)
    return directions @ directions.mT


@torch.inference_mode()
def attention_figures(
    model: FoveatedModel, load: LoadClips, clips: int, *, batch_size: int, device: torch.device
) -> dict[str, float]:
    """Means over clips 0 .. `clips` - 1 and their frames, for the coarse and the last fine pass.

    attention_entropy_*  share of uniform attention's entropy (1: looks everywhere alike)
    attention_peak_*     largest share of one token, in multiples of uniform attention
    query_similarity     cosine of the predicted queries of two successive frames (1: the same)
    """
    sums: dict[str, float] = {}
    with Progress("attention", total=clips, unit="clip") as progress:
        for start in range(0, clips, batch_size):
            rows = range(start, min(start + batch_size, clips))
            batch = load(rows).to(device)
            B, T = batch.latents.shape[:2]
            passes = model.run_passes(model.cache_clips(batch.inputs, batch.captions), B, T)
            for name, value in _clip_figures(passes[0], passes[-1]).items():
                sums[name] = sums.get(name, 0.0) + float(value.double().sum())
            progress.advance(len(rows))
    return {name: value / clips for name, value in sums.items()}


def _clip_figures(coarse: PassOutput, fine: PassOutput) -> dict[str, Tensor]:
    """Each figure [B] of a batch of clips."""
    figures = {}
    for name, found in (("coarse", coarse), ("fine", fine)):
        figures[f"attention_entropy_{name}"] = entropy_share(found.attention).mean(dim=1)
        figures[f"attention_peak_{name}"] = peak_times_uniform(found.attention).mean(dim=1)
    # The first query is q_init: only those from frame 2 on are predicted.
    predicted = query_similarity(fine.queries[:, 1:])
    figures["query_similarity"] = predicted.diagonal(1, dim1=1, dim2=2).mean(dim=1)
    return figures
