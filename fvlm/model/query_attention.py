"""Query attention: a query reads one frame's tokens and comes back as one token.

Asymmetric: the query sees every token of its frame (and may see itself), no token sees the query.
The frame's own forward is therefore independent of the query: `cache_frames` computes its keys and
values once, and any number of queries (static, predicted, controls) run through them cheaply.

One parameter, `query_layers` = k, spans the two variants here:
    k = 0   ShallowAttention: softmax(q X^T / (sqrt(D) temperature)) X on the stored tokens
    k > 0   DeepAttention: the query is one more CLS-like token in the last k encoder blocks

PooledTokens stands in their place in a baseline: several tokens a frame, and no query.

Axes: F frames (B*T), N tokens, P pooled tokens, D width, d width of one attention head.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fvlm.core.device import product_dtype
from fvlm.encoders.dino import EncoderBlock, EncoderTail

QueryRole = Literal["token", "question"]
QueryReads = Literal["all", "patches"]


def patch_grid(tokens: int) -> tuple[int, int]:
    """Number of tokens before the patches (CLS and registers), and patches along one side.

    Frames are square: the patches are the largest square that leaves the CLS token. Right for r
    registers when a side has at least r / 2 patches.
    """
    side = math.isqrt(tokens - 1)
    return tokens - side * side, side


@dataclass(frozen=True)
class FrameCache:
    """Keys and values [F,heads,N,d] of every block that the query passes through.

    masked: no query reads so many tokens from the first on.
    """

    blocks: list[tuple[Tensor, Tensor]]
    masked: int = 0

    def take(self, frames: Tensor) -> "FrameCache":
        """The cache of a subset (or another order) of the frames; `frames` int64 [F']."""
        blocks = [(key[frames], value[frames]) for key, value in self.blocks]
        return replace(self, blocks=blocks)

    def only_patches(self) -> "FrameCache":
        """The same frames with CLS and registers masked."""
        return replace(self, masked=patch_grid(self.blocks[0][0].shape[2])[0])

    def readable(self, reads: QueryReads) -> "FrameCache":
        """As `model.query_reads` says."""
        return self.only_patches() if reads == "patches" else self


class ShallowAttention(nn.Module):
    """Single-head attention of the query over the stored tokens themselves; no weights."""

    tokens_per_frame = 1

    def __init__(self, width: int, *, temperature: float, reads: QueryReads = "all") -> None:
        super().__init__()
        self.width, self.reads = width, reads
        self.scale = 1 / (math.sqrt(width) * temperature)

    def cache_frames(self, tokens: Tensor, *, dtype: torch.dtype | None = None) -> FrameCache:
        """Tokens [F,N,D] serve as keys and as values, of type `dtype`; None: their own.

        Under autocast of its type: cast here and once, and not for every product of every pass.
        """
        heads = tokens.to(product_dtype(tokens.device, dtype or tokens.dtype))[:, None]
        return FrameCache([(heads, heads)]).readable(self.reads)

    def forward(self, queries: Tensor, cache: FrameCache) -> tuple[Tensor, Tensor]:
        """Queries [F,D] -> what they bring back [F,D] and their attention over tokens [F,N]."""
        keys, values = cache.blocks[0]
        logits = _logits(queries[:, None], keys, self.scale, masked=cache.masked)
        weights = torch.softmax(logits, dim=-1)
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

    tokens_per_frame = 1

    def __init__(
        self,
        tail: EncoderTail,
        *,
        role: QueryRole = "token",
        temperature: float = 1.0,
        reads: QueryReads = "all",
    ) -> None:
        super().__init__()
        self.width, self.reads = tail.width, reads
        self.role, self.temperature = role, temperature
        self.tail = tail.requires_grad_(False)

    def cache_frames(self, tokens: Tensor, *, dtype: torch.dtype | None = None) -> FrameCache:
        """Tokens [F,N,D] entering the first of the k blocks -> keys and values of each block.

        dtype: of the stream of residuals; None: that of the tokens.
        """
        cached = self.tail.cache_frames(tokens.to(dtype or tokens.dtype))
        return FrameCache(cached).readable(self.reads)

    def forward(
        self, queries: Tensor, cache: FrameCache, *, look: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Queries [F,D] -> their final token [F,D] and last-block attention [F,N].

        The attention is the mean over heads; what a query gives to itself is the rest to 1. With
        `look` [F,D], other queries, all attention is theirs: what comes back differs from theirs
        only by what the queries themselves carry along the residual stream.
        """
        shared = list(self._steps(look, cache)) if look is not None else None
        for x, weights in self._steps(queries, cache, shared):
            final, attention = x, weights
        return self.tail.final_norm(final), attention[..., : cache.blocks[0][0].shape[2]].mean(1)

    def _steps(
        self, queries: Tensor, cache: FrameCache, shared: list[tuple[Tensor, Tensor]] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The query token [F,D] after each block and its attention [F,heads,N or N + 1] there."""
        x, residual = queries, queries if self.role == "token" else torch.zeros_like(queries)
        for number, (block, (keys, values)) in enumerate(
            zip(self.tail.blocks, cache.blocks, strict=True)
        ):
            assert isinstance(block, EncoderBlock)
            normed = block.norm1(x)
            weights = (
                shared[number][1] if shared else self._weights(block, normed, keys, cache.masked)
            )
            attended = _weighted(weights[..., : keys.shape[2]], values)
            if self.role == "token":
                own_value = block.v(normed).unflatten(-1, (keys.shape[1], keys.shape[3]))
                attended = attended + weights[..., -1:] * own_value
            x = residual + block.scale1(block.out(attended.flatten(1)))
            x = residual = x + block.scale2(block.mlp(block.norm2(x)))
            yield x, weights

    def _weights(self, block: EncoderBlock, normed: Tensor, keys: Tensor, masked: int) -> Tensor:
        """Attention [F,heads,N] of the query over the frame; a token's own stands behind it."""
        heads, d = keys.shape[1], keys.shape[3]
        scale = 1 / (math.sqrt(d) * self.temperature)
        query = block.q(normed).unflatten(-1, (heads, d))
        logits = _logits(query, keys, scale, masked=masked)
        if self.role == "token":
            own_key = block.k(normed).unflatten(-1, (heads, d))
            own_logit = (query * own_key).sum(-1, keepdim=True) * scale
            logits = torch.cat([logits, own_logit], dim=-1)
        return torch.softmax(logits, dim=-1)


class PooledTokens(nn.Module):
    """No query: means over the cells of a grid laid over a frame's patches; CLS is left out.

    With a tail the final tokens are pooled: the frame goes through the blocks that a query would.
    """

    def __init__(self, width: int, count: int, *, tail: EncoderTail | None = None) -> None:
        super().__init__()
        self.width, self.tokens_per_frame = width, count
        self.tail = tail.requires_grad_(False) if tail else None

    def cache_frames(self, tokens: Tensor, *, dtype: torch.dtype | None = None) -> FrameCache:
        """Tokens [F,N,D] -> the pooled ones, as keys and values [F,1,P,D]."""
        tokens = tokens.to(dtype or tokens.dtype)
        if self.tail:
            tokens = self.tail.forward_tokens(tokens)
        before, side = patch_grid(tokens.shape[1])
        patches = tokens[:, before:].transpose(1, 2).unflatten(2, (side, side))
        cells = F.adaptive_avg_pool2d(patches, math.isqrt(self.tokens_per_frame))
        pooled = cells.flatten(2).transpose(1, 2)[:, None]
        return FrameCache([(pooled, pooled)])

    def forward(self, _queries: Tensor, cache: FrameCache) -> tuple[Tensor, Tensor]:
        """Pooled tokens [F,P,D], whatever the queries, and an even attention over them [F,P]."""
        pooled = cache.blocks[0][1][:, 0]
        return pooled, pooled.new_full(pooled.shape[:2], 1 / self.tokens_per_frame)


def _logits(query: Tensor, keys: Tensor, scale: float, *, masked: int) -> Tensor:
    """query [F,heads,d], keys [F,heads,N,d] -> scaled dot products [F,heads,N]."""
    logits = (keys @ (query * scale).to(keys.dtype)[..., None])[..., 0].float()
    if masked:
        logits = torch.cat(
            [torch.full_like(logits[..., :masked], -torch.inf), logits[..., masked:]], dim=-1
        )
    return logits


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """weights [F,heads,N], values [F,heads,N,d] -> [F,heads,d]."""
    return (weights.to(values.dtype)[:, :, None] @ values)[:, :, 0]
