"""Captions beside the video: their tokens, their place in the sequence, and their loss.

    condition   [caption, m, v_1 .. v_T]       padded on the left; its keys and values are shared
    caption     [m, v_1 .. v_T, caption, EOS]  padded on the right: nothing real sees padding

A padding position is known by the mask alone, never by its token id: the same id can be EOS.

Axes: B clips, M tokens of the longest caption, H hidden width, V vocabulary, d width of one head.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn import functional as F
from transformers import DynamicCache, LlamaModel

from fvlm.clips.batch import Captions

Text = Literal["none", "condition", "caption"]
# Tokens whose logits exist at once. The library chooses 32 here, which takes a CPU 5 times as long.
CHUNK = 256


@dataclass(frozen=True)
class Prefix:
    """The language model's memory of the captions in front of the video.

    blocks: keys and values [B,heads,M,d] of each block; mask bool [B,M]; lengths int64 [B], tokens
    that are no padding.
    """

    blocks: list[tuple[Tensor, Tensor]]
    mask: Tensor
    lengths: Tensor

    @classmethod
    def read(cls, language: LlamaModel, captions: Captions) -> "Prefix":
        """Run the language model over the captions, which are padded on the left."""
        mask = captions.mask
        M = mask.shape[1]
        causal = torch.ones(M, M, dtype=torch.bool, device=mask.device).tril()
        # Padding sees itself: a row that sees nothing has no softmax.
        itself = torch.eye(M, dtype=torch.bool, device=mask.device)
        output = language(
            inputs_embeds=language.get_input_embeddings()(captions.ids),
            attention_mask=((causal & mask[:, None]) | itself)[:, None],
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=DynamicCache(config=language.config),
            use_cache=True,
        )
        blocks = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        # The last block's output serves nobody, but stays in the graph: fully_shard gathers weights
        # again when the gradient of their block's output arrives, before keys and values need them.
        keys, values = blocks[-1]
        blocks[-1] = (keys + (0 * output.last_hidden_state.sum()).to(keys.dtype), values)
        return cls(blocks, mask, mask.sum(1))

    def memory(self, language: LlamaModel) -> DynamicCache:
        """A cache that starts with the captions; growing it leaves this prefix as it is."""
        past = DynamicCache(config=language.config)
        for number, (keys, values) in enumerate(self.blocks):
            past.update(keys, values, number)
        return past

    def places(self, before: int, count: int) -> dict[str, Tensor]:
        """Mask and positions for `count` more tokens of each clip, `before` of which are known."""
        seen = self.mask.new_ones(len(self.mask), before + count)
        steps = torch.arange(before, before + count, device=self.mask.device)
        return {
            "attention_mask": torch.cat([self.mask, seen], dim=1).long(),
            "position_ids": self.lengths[:, None] + steps,
        }


def caption_losses(states: Tensor, weight: Tensor, captions: Captions) -> Tensor:
    """Mean cross-entropy of each clip over its caption and EOS, float32 [B]; 0 without a caption.

    states [B,M,H]: the first is that of v_T, each predicts the token of its column; weight [V,H].
    """
    mask = captions.mask
    losses = token_losses(states[mask], weight, captions.ids[mask])
    by_clip = torch.zeros(mask.shape, device=losses.device).masked_scatter(mask, losses)
    return by_clip.sum(1) / mask.sum(1).clamp(min=1)


def token_losses(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of `softmax(states @ weight.T)`, float32 [n]; states [n,H], targets int64 [n].

    The logits [n,V] never exist as a whole: they are made in parts, and again in the backward pass.
    Under autocast they are made in its type; sums are float32.
    """
    kind = states.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        states, weight = states.to(dtype), weight.to(dtype)
    options: Any = LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=CHUNK)
    losses = F.linear_cross_entropy(
        states, weight.to(states.dtype), targets, reduction="none", options=options
    )
    return losses.float()
