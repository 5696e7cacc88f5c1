"""Query attention: a query reads one frame's tokens and comes back as one token.

Asymmetric: the query sees every token of its frame (and may see itself), no token sees the query.
The frame's own forward is therefore independent of the query: `cache_frames` computes its keys and
values once, and any number of queries (static, predicted, controls) run through them cheaply.

One parameter, `query_layers` = k, spans the two variants here:
    k = 0   ShallowAttention: softmax(q X^T / (sqrt(D) temperature)) X on the stored tokens
    k > 0   DeepAttention: the query is one more CLS-like token in the last k encoder blocks

Axes: F frames (B*T), N tokens, D width, d width of one attention head.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fvlm.core.device import product_dtype
from fvlm.encoders.dino import EncoderBlock, EncoderTail

QueryRole = Literal["token", "question"]


@dataclass(frozen=True)
class FrameCache:
    """Keys and values [F,heads,N,d] of every block that the query passes through."""

    blocks: list[tuple[Tensor, Tensor]]

    def take(self, frames: Tensor) -> "FrameCache":
        """The cache of a subset (or another order) of the frames; `frames` int64 [F']."""
        return FrameCache([(key[frames], value[frames]) for key, value in self.blocks])


class ShallowAttention(nn.Module):
    """Single-head attention of the query over the stored tokens themselves; no weights."""

    def __init__(self, width: int, *, temperature: float) -> None:
        super().__init__()
        self.width = width
        self.scale = 1 / (math.sqrt(width) * temperature)

    def cache_frames(self, tokens: Tensor, *, dtype: torch.dtype | None = None) -> FrameCache:
        """Tokens [F,N,D] serve as keys and as values, of type `dtype`; None: their own.

        Under autocast of its type: cast here and once, and not for every product of every pass.
        """
        heads = tokens.to(product_dtype(tokens.device, dtype or tokens.dtype))[:, None]
        return FrameCache([(heads, heads)])

    def forward(self, queries: Tensor, cache: FrameCache) -> tuple[Tensor, Tensor]:
        """Queries [F,D] -> what they bring back [F,D] and their attention over tokens [F,N]."""
        keys, values = cache.blocks[0]
        weights = torch.softmax(_logits(queries[:, None], keys, self.scale), dim=-1)
        return _weighted(weights, values)[:, 0], weights[:, 0]


class DeepAttention(nn.Module):
    """The query passes through the last k blocks of the encoder as one more CLS-like token.

    It has no position: rotary encoders do not rotate it, as they do not rotate CLS and registers.
    The blocks start frozen; gradients flow through them to the query.

    As a `token` it has a key and a value of its own, as CLS has, and stays on the residual stream.
    A query that was never a token of the encoder likes itself best, and is far larger than what it
    brings back (see benchmarks/calibration.md): it hardly learns where to look. As a `question` it
    only asks: all of its attention goes to the frame, and in the first of its blocks the answer
    takes its place instead of being added to it. `temperature` divides the attention logits of the
    query, not those of the frame's own tokens; 1 is the encoder's own.
    """

    def __init__(
        self, tail: EncoderTail, *, role: QueryRole = "token", temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.width = tail.width
        self.role, self.temperature = role, temperature
        self.tail = tail.requires_grad_(False)

    def cache_frames(self, tokens: Tensor, *, dtype: torch.dtype | None = None) -> FrameCache:
        """Tokens [F,N,D] entering the first of the k blocks -> keys and values of each block.

        dtype: of the stream of residuals; None: that of the tokens.
        """
        return FrameCache(self.tail.cache_frames(tokens.to(dtype or tokens.dtype)))

    def forward(self, queries: Tensor, cache: FrameCache) -> tuple[Tensor, Tensor]:
        """Queries [F,D] -> their final token [F,D] and last-block attention [F,N].

        The attention is the mean over heads; what a query gives to itself is the rest to 1.
        """
        x, residual = queries, queries if self.role == "token" else torch.zeros_like(queries)
        for block, (keys, values) in zip(self.tail.blocks, cache.blocks, strict=True):
            assert isinstance(block, EncoderBlock)
            attended, weights = self._attend(block, x, keys, values)
            x = residual + block.scale1(block.out(attended))
            x = residual = x + block.scale2(block.mlp(block.norm2(x)))
        return self.tail.final_norm(x), weights.mean(dim=1)

    def _attend(
        self, block: EncoderBlock, x: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The query token x [F,D] in a block's attention -> values [F,D], weights [F,heads,N]."""
        heads, d = keys.shape[1], keys.shape[3]
        normed, scale = block.norm1(x), 1 / (math.sqrt(d) * self.temperature)
        query = block.q(normed).unflatten(-1, (heads, d))
        logits = _logits(query, keys, scale)
        if self.role == "token":
            own_key, own_value = (
                projection(normed).unflatten(-1, (heads, d)) for projection in (block.k, block.v)
            )
            own_logit = (query * own_key).sum(-1, keepdim=True) * scale
            weights = torch.softmax(torch.cat([logits, own_logit], dim=-1), dim=-1)
            weights, own_weight = weights[..., :-1], weights[..., -1:]
            attended = _weighted(weights, values) + own_weight * own_value
        else:
            weights = torch.softmax(logits, dim=-1)
            attended = _weighted(weights, values)
        return attended.flatten(1), weights


def _logits(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """query [F,heads,d], keys [F,heads,N,d] -> scaled dot products [F,heads,N]."""
    return (keys @ (query * scale).to(keys.dtype)[..., None])[..., 0].float()


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """weights [F,heads,N], values [F,heads,N,d] -> [F,heads,d]."""
    return (weights.to(values.dtype)[:, :, None] @ values)[:, :, 0]
