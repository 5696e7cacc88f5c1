"""Text beside the video: its tokens, their place in the sequence, and their loss.

    condition   [caption, m, v_1 .. v_T]       padded on the left; its keys and values are shared
    caption     [m, v_1 .. v_T, caption, EOS]  padded on the right: nothing real sees padding
    answer      [question, m, v_1 .. v_T, answer, EOS]: both at once, with loss on the answer alone;
                or with the question behind the video: [m, v_1 .. v_T, question, answer, EOS]

A padding position is known by the mask alone, never by its token id: the same id can be EOS.

Axes: B clips, M tokens of the longest caption, H hidden width, V vocabulary, d width of one head.
"""

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, LlamaConfig, LlamaModel

from fvlm.clips.batch import Captions
from fvlm.core.device import product_dtype

Text = Literal["none", "condition", "caption", "answer"]
PREDICTED = ("caption", "answer")  # stand behind the video
# Tokens whose logits exist at once. The library chooses 32 here, which takes a CPU 5 times as long.
CHUNK = 256
FUSED = hasattr(F, "linear_cross_entropy")  # since torch 2.13


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
        reading = _Reading(config=language.config)
        output = language(
            inputs_embeds=language.get_input_embeddings()(captions.ids),
            attention_mask=((causal & mask[:, None]) | itself)[:, None],
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=reading,
            use_cache=True,
        )
        blocks = [reading.found[number] for number in range(len(language.layers))]
        # The last block's output serves nobody, but stays in the graph: fully_shard gathers weights
        # again when the gradient of their block's output arrives, before keys and values need them.
        keys, values = blocks[-1]
        blocks[-1] = (keys + (0 * output.last_hidden_state.sum()).to(keys.dtype), values)
        return cls(blocks, mask, mask.sum(1))

    def memory(self, language: LlamaModel) -> DynamicCache:
        """A cache that starts with the captions; growing it leaves this prefix as it is."""
        return self._fill(DynamicCache(config=language.config))

    def in_front(self, language: LlamaModel) -> DynamicCache:
        """A cache of the captions that does not grow: for one sequence as a whole."""
        return self._fill(_InFront(config=language.config))

    def _fill(self, past: DynamicCache) -> DynamicCache:
        for number, (keys, values) in enumerate(self.blocks):
            DynamicCache.update(past, keys, values, number)
        return past

    def places(self, before: int, count: int) -> dict[str, Tensor]:
        """Mask and positions for `count` more tokens of each clip, `before` of which are known."""
        seen = self.mask.new_ones(len(self.mask), before + count)
        steps = torch.arange(before, before + count, device=self.mask.device)
        return {
            "attention_mask": torch.cat([self.mask, seen], dim=1).long(),
            "position_ids": self.lengths[:, None] + steps,
        }


class _Reading(DynamicCache):
    """Hands out the keys and values of each block; a block that runs again changes nothing."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config=config)
        self.found: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        self.found[layer_idx] = (key_states, value_states)
        return key_states, value_states


class _InFront(DynamicCache):
    """What is read stands before each sequence; a block that runs again changes nothing."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        before: Any = self.layers[layer_idx]
        keys = torch.cat([before.keys, key_states], dim=-2)
        return keys, torch.cat([before.values, value_states], dim=-2)


def caption_losses(states: Tensor, weight: Tensor, captions: Captions) -> Tensor:
    """Mean cross-entropy of each clip over its caption and EOS, float32 [B]; 0 without a caption.

    Of an answer: over the tokens that count. states [B,M,H]: the first is that of v_T, each
    predicts the token of its column; weight [V,H].
    """
    mask = captions.mask if captions.counted is None else captions.counted
    losses = token_losses(states[mask], weight, captions.ids[mask])
    by_clip = torch.zeros(mask.shape, device=losses.device).masked_scatter(mask, losses)
    return by_clip.sum(1) / mask.sum(1).clamp(min=1)


def token_losses(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of `softmax(states @ weight.T)`, float32 [n]; states [n,H], targets int64 [n].

    The logits [n,V] never exist as a whole: they are made in parts, and again in the backward pass.
    Under autocast they are made in its type; sums are float32. A torch older than 2.13 makes them
    as a whole, and this is said once.
    """
    dtype = product_dtype(states.device, states.dtype)
    states, weight = states.to(dtype), weight.to(dtype)
    if not FUSED:
        _say_plain()
        return F.cross_entropy((states @ weight.T).float(), targets, reduction="none")
    options: Any = nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=CHUNK)
    losses = F.linear_cross_entropy(states, weight, targets, reduction="none", options=options)
    return losses.float()


@cache
def _say_plain() -> None:
    if hasattr(F, "linear_cross_entropy"):
        return  # switched off on purpose
    print(
        f"captions: no linear_cross_entropy in torch {torch.__version__} (2.13 has it): all logits "
        "are made at once, which takes more memory",
        file=sys.stderr,
    )
