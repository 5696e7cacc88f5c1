"""What a trained model sees: predicted latents, visual tokens and attention maps of every pass.

    found = inspect_clips(model, tokens, latents)
    found.passes["fine_1"].latents        # [B,T,C,h,w]
    found.attention_maps("coarse")        # [B,T,rows,columns]

Axes: B batch, T frames, N tokens, D token width, H hidden width, C h w latent.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fvlm.clips.batch import Captions
from fvlm.core.errors import FvlmError
from fvlm.model.autoregressive import run_autoregressive
from fvlm.model.foveated import FoveatedModel, PassOutput
from fvlm.model.query_attention import patch_grid


@dataclass(frozen=True)
class InspectedPass:
    """One pass over B clips of T frames, float32.

    latents [B,T,C,h,w] predicted; visual [B,T,H] tokens; queries [B,T,D] that read the frames;
    attention [B,T,N] of each query over its frame's tokens. A deep query also attends to itself:
    its attention sums to less than 1.
    """

    latents: Tensor
    visual: Tensor
    queries: Tensor
    attention: Tensor


@dataclass(frozen=True)
class Inspection:
    """Passes by name: `coarse`, `fine_1` .. `fine_K`, `autoregressive`, in this order.

    Of the N tokens the first `prefix_tokens` are CLS and registers; the others are the patches of a
    `grid` of (rows, columns), row by row from the top left.
    """

    passes: dict[str, InspectedPass]
    prefix_tokens: int
    grid: tuple[int, int]

    def attention_maps(self, name: str) -> Tensor:
        """Attention of a pass over the patches, float32 [B,T,rows,columns]; not renormalised."""
        patches = self.passes[name].attention[..., self.prefix_tokens :]
        return patches.reshape(*patches.shape[:-1], *self.grid)


@torch.inference_mode()
def inspect_clips(
    model: FoveatedModel, inputs: Tensor, latents: Tensor, captions: Captions | None = None
) -> Inspection:
    """Run every pass over the clips; arguments as of the model's `forward`.

    Raises FvlmError when the model has text and there are no captions, or the other way round.
    """
    if (captions is None) != (model.text == "none"):
        wanted = "none must be given" if captions else "captions of the clips must be given"
        raise FvlmError(f"model.text is {model.text}: {wanted}")
    B, T = inputs.shape[:2]
    cache = model.cache_clips(inputs, captions)
    coarse, *fine = model.run_passes(cache, B, T)
    outputs = {"coarse": coarse}
    outputs |= {f"fine_{number}": output for number, output in enumerate(fine, start=1)}
    outputs["autoregressive"] = run_autoregressive(model, cache, B, T)
    previous = model.encode_previous(latents)
    prefix, side = patch_grid(coarse.attention.shape[-1])
    return Inspection(
        passes={
            name: _inspected(output, model.head(output.predictor, previous))
            for name, output in outputs.items()
        },
        prefix_tokens=prefix,
        grid=(side, side),
    )


def _inspected(output: PassOutput, latents: Tensor) -> InspectedPass:
    return InspectedPass(
        latents=latents.float(),
        visual=output.visual.float(),
        queries=output.queries.float(),
        attention=output.attention.float(),
    )
