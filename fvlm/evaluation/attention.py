"""How sharply the queries look: figures of the attention of the passes.

What a query gives to itself (deep attention) is left out: the rest is taken as its attention over
the tokens of the frame. Sharpness is that over the patches, since CLS and registers, which belong
to no place, can take much of the attention. Uniform attention over P patches has entropy ln P and
a peak of 1 / P.

Axes: B batch, T frames, N tokens (CLS, registers, patches), D token width.
"""

import math

import torch
from torch import Tensor

from fvlm.core.progress import Progress
from fvlm.evaluation.losses import LoadClips
from fvlm.model.autoregressive import run_autoregressive
from fvlm.model.foveated import FoveatedModel, PassOutput
from fvlm.model.query_attention import patch_grid
from fvlm.statistics.evaluation import Attention, PassAttention


def over_patches(attention: Tensor) -> Tensor:
    """Attention [..,N] as a distribution over the patches, float32; even where they get none."""
    prefix, _ = patch_grid(attention.shape[-1])
    values = attention[..., prefix:].float()
    shares: Tensor = values / values.sum(dim=-1, keepdim=True)
    return shares.nan_to_num(nan=1 / values.shape[-1])


def cls_share(attention: Tensor) -> Tensor:
    """The share of attention [..,N] that CLS and registers get; 0 to 1."""
    prefix, _ = patch_grid(attention.shape[-1])
    values = attention.float()
    share: Tensor = values[..., :prefix].sum(dim=-1) / values.sum(dim=-1)
    return share


def entropy_share(attention: Tensor) -> Tensor:
    """Entropy over the patches of attention [..,N] as a share of uniform attention's; 0 to 1."""
    shares = over_patches(attention)
    entropy: Tensor = torch.special.entr(shares).sum(dim=-1)
    return entropy / math.log(shares.shape[-1])


def peak_times_uniform(attention: Tensor) -> Tensor:
    """The largest share among the P patches in multiples of uniform attention's 1 / P; 1 to P."""
    shares = over_patches(attention)
    return shares.amax(dim=-1) * shares.shape[-1]


def query_similarity(queries: Tensor) -> Tensor:
    """Cosine of the queries [..,T,D] of every two frames [..,T,T]."""
    directions = torch.nn.functional.normalize(queries.float(), dim=-1)
    return directions @ directions.mT


@torch.inference_mode()
def attention_figures(
    model: FoveatedModel, load: LoadClips, clips: int, *, batch_size: int, device: torch.device
) -> Attention:
    """Means over clips 0 .. `clips` - 1 and their frames, by pass."""
    by_pass: dict[str, list[Tensor]] = {}
    similarity = []
    with Progress("attention", total=clips, unit="clip") as progress:
        for start in range(0, clips, batch_size):
            rows = range(start, min(start + batch_size, clips))
            batch = load(rows).to(device)
            B, T = batch.latents.shape[:2]
            cache = model.cache_clips(batch.inputs, batch.captions)
            passes = model.run_passes(cache, B, T)
            outputs = {"coarse": passes[0], "fine": passes[-1]}
            outputs["autoregressive"] = run_autoregressive(model, cache, B, T)
            for name, output in outputs.items():
                by_pass.setdefault(name, []).append(_clip_figures(output))
            # The first query is q_init: only those from frame 2 on are predicted.
            predicted = query_similarity(passes[-1].queries[:, 1:])
            similarity.append(predicted.diagonal(1, dim1=1, dim2=2).mean(dim=1))
            progress.advance(len(rows))
    means = {name: torch.cat(figures, dim=1).mean(dim=1) for name, figures in by_pass.items()}
    return Attention(
        passes={
            name: PassAttention(
                entropy=float(mean[0]), peak=float(mean[1]), cls_share=float(mean[2])
            )
            for name, mean in means.items()
        },
        query_similarity=float(torch.cat(similarity).cpu().double().mean()),
    )


def _clip_figures(output: PassOutput) -> Tensor:
    """Entropy, peak and share of CLS of each clip, means over its frames: float64 [3,B]."""
    found = (
        measure(output.attention) for measure in (entropy_share, peak_times_uniform, cls_share)
    )
    return torch.stack([values.mean(dim=1).cpu().double() for values in found])
