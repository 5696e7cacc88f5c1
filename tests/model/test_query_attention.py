"""Query attention against the stock encoders with one more token and an explicit mask."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel

from fvlm.encoders.dino import DinoEncoder, EncoderBlock
from fvlm.model.query_attention import (
    DeepAttention,
    FrameCache,
    PooledTokens,
    QueryRole,
    ShallowAttention,
)
from tests import tiny

L, D, SIZE = 4, 32, 56
Stock = Dinov2Model | DINOv3ViTModel


def make_stock(family: str) -> Stock:
    """A tiny stock encoder in which every weight matters (no trivial LayerScale or bias)."""
    sizes: dict[str, Any] = {
        "hidden_size": D,
        "num_hidden_layers": L,
        "num_attention_heads": 4,
        "patch_size": 14,
    }
    model: Stock
    if family == "dinov2":
        model = Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2, image_size=SIZE))
    else:
        gated = family == "dinov3_gated"
        model = DINOv3ViTModel(
            DINOv3ViTConfig(
                **sizes, intermediate_size=48, num_register_tokens=3, use_gated_mlp=gated
            )
        )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.25)
    model.eval()
    return model


FAMILIES = ["dinov2", "dinov3", "dinov3_gated"]


@pytest.fixture(params=FAMILIES)
def stock(request: pytest.FixtureRequest) -> Stock:
    return make_stock(request.param)


def frames(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8)


def masked_encoder(
    model: Stock, pixels: Tensor, query: Tensor, k: int, *, role: QueryRole
) -> Tensor:
    """The final token of a query that joins the tokens entering the last k blocks.

    In the explicit mask only the query's row may see the query's column, and not even that as a
    question, which the first of these blocks does not add to its answer either. For DINOv3 the
    query stands among the tokens without position: in front.
    """

    def without_query(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0][:, 0] -= query  # in place: what goes on is the answer alone

    if isinstance(model, Dinov2Model):
        layers, norm, extra = model.encoder.layer, model.layernorm, {}
    else:
        layers, norm = model.model.layer, model.norm
        extra = {"position_embeddings": model.rope_embeddings(pixels)}
    tokens = model.embeddings(pixels)
    for layer in layers[: L - k]:
        tokens = layer(tokens, **extra)
    tokens = torch.cat([query[:, None], tokens], dim=1)
    mask = torch.zeros(1, 1, tokens.shape[1], tokens.shape[1])
    mask[..., int(role == "token") :, 0] = -math.inf
    if role == "question":
        layers[L - k].get_submodule("norm2").register_forward_pre_hook(without_query)
    for layer in layers[L - k :]:
        tokens = layer(tokens, attention_mask=mask, **extra)
    final: Tensor = norm(tokens)[:, 0]
    return final


@pytest.mark.parametrize("role", ["token", "question"])
@pytest.mark.parametrize("k", range(1, L + 1))
@torch.no_grad()
def test_the_cached_query_equals_the_masked_full_encoder(
    stock: Stock, k: int, role: QueryRole
) -> None:
    encoder, pixels = DinoEncoder(stock), frames()
    query = torch.randn(3, D)
    attention = DeepAttention(encoder.tail(k), role=role)
    found, weights = attention(query, attention.cache_frames(encoder(pixels, layer=L - k)))
    normalised = encoder._normalise(pixels)
    expected = masked_encoder(stock, normalised, query, k, role=role)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert weights.shape == (3, encoder.num_tokens(SIZE))
    assert torch.allclose(weights.sum(dim=-1), torch.ones(3)) == (role == "question")


@pytest.mark.parametrize("k", range(1, L + 1))
@torch.no_grad()
def test_the_frames_own_tokens_are_those_of_the_stock_encoder(stock: Stock, k: int) -> None:
    """Stored layer and then the tail equals from pixels: the query changes nothing for tokens."""
    encoder, pixels = DinoEncoder(stock), frames()
    stored = encoder(pixels, layer=L - k)
    expected = stock(encoder._normalise(pixels)).last_hidden_state
    torch.testing.assert_close(encoder.tail(k).forward_tokens(stored), expected)
    torch.testing.assert_close(encoder(pixels, layer=L), expected)


@torch.no_grad()
def test_the_stored_layer_equals_from_pixels_also_for_the_query(stock: Stock) -> None:
    """The last block's keys do not depend on the layer at which the tokens were stored."""
    encoder, pixels = DinoEncoder(stock), frames()
    deep = encoder.tail(L).cache_frames(encoder(pixels, layer=0))
    for k in range(1, L):
        cache = encoder.tail(k).cache_frames(encoder(pixels, layer=L - k))
        for found, expected in zip(cache, deep[L - k :], strict=True):
            torch.testing.assert_close(found[0], expected[0])
            torch.testing.assert_close(found[1], expected[1])


@torch.no_grad()
def test_weights_and_the_querys_own_weight_sum_to_one(stock: Stock) -> None:
    encoder = DinoEncoder(stock)
    attention = DeepAttention(encoder.tail(1))
    cache = attention.cache_frames(encoder(frames(), layer=L - 1))
    query = torch.randn(3, D)
    _, weights = attention(query, cache)
    block = encoder.tail(1).blocks[0]
    assert isinstance(block, EncoderBlock)
    normed = block.norm1(query)
    q, own = (p(normed).unflatten(-1, (4, -1)) for p in (block.q, block.k))
    keys = torch.cat([cache.blocks[0][0], own[:, :, None]], dim=2)
    full = torch.softmax((keys @ q[..., None])[..., 0] / math.sqrt(D / 4), dim=-1)
    torch.testing.assert_close(weights, full[..., :-1].mean(1))
    torch.testing.assert_close(weights.sum(-1) + full[..., -1].mean(1), torch.ones(3))
    assert (weights.sum(-1) < 1).all()


def test_gradients_reach_the_query_and_nothing_of_the_encoder(stock: Stock) -> None:
    encoder = DinoEncoder(stock)
    attention = DeepAttention(encoder.tail(2))
    tokens = encoder(frames(), layer=L - 2).detach()
    query = torch.randn(3, D, requires_grad=True)
    attention(query, attention.cache_frames(tokens))[0].square().sum().backward()
    assert query.grad is not None
    assert query.grad.abs().min() > 0
    assert not any(value.requires_grad for value in attention.parameters())
    assert all(value.grad is None for value in attention.parameters())


@pytest.mark.parametrize("temperature", [0.5, 3.0])
@torch.no_grad()
def test_the_temperature_divides_the_querys_logits_alone(stock: Stock, temperature: float) -> None:
    encoder, query = DinoEncoder(stock), torch.randn(3, D)
    tokens, block = encoder(frames(), layer=L - 1), encoder.tail(1).blocks[0]
    attention = DeepAttention(encoder.tail(1), role="question", temperature=temperature)
    cache = attention.cache_frames(tokens)
    assert isinstance(block, EncoderBlock)
    logits = cache.blocks[0][0] @ block.q(block.norm1(query)).unflatten(-1, (4, -1))[..., None]
    expected = torch.softmax(logits[..., 0] / (math.sqrt(D / 4) * temperature), dim=-1)
    torch.testing.assert_close(attention(query, cache)[1], expected.mean(dim=1))
    torch.testing.assert_close(cache.blocks[0], encoder.tail(1).cache_frames(tokens)[0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_shallow_attention_is_the_softmax_of_the_definition(temperature: float) -> None:
    tokens, query = torch.randn(3, 7, D), torch.randn(3, D)
    attention = ShallowAttention(D, temperature=temperature)
    found, weights = attention(query, attention.cache_frames(tokens))
    logits = torch.einsum("fd,fnd->fn", query, tokens) / (math.sqrt(D) * temperature)
    torch.testing.assert_close(weights, logits.softmax(-1))
    torch.testing.assert_close(found, torch.einsum("fn,fnd->fd", logits.softmax(-1), tokens))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))


def test_frames_do_not_mix() -> None:
    attention, query = ShallowAttention(D, temperature=1.0), torch.randn(3, D)
    tokens = torch.randn(3, 7, D)
    found, _ = attention(query, attention.cache_frames(tokens))
    changed = torch.cat([tokens[:1], torch.randn(2, 7, D)])
    assert torch.equal(attention(query, attention.cache_frames(changed))[0][0], found[0])


def test_a_cache_can_be_reordered() -> None:
    attention, query = ShallowAttention(D, temperature=1.0), torch.randn(3, D)
    tokens, order = torch.randn(3, 7, D), torch.tensor([2, 0, 1])
    cache = attention.cache_frames(tokens)
    assert isinstance(cache.take(order), FrameCache)
    found, _ = attention(query[order], cache.take(order))
    torch.testing.assert_close(found, attention(query, cache)[0][order])


def test_shallow_attention_casts_its_tokens_once_however_often_they_are_read() -> None:
    attention, cast = ShallowAttention(D, temperature=1.0), list[int]()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, operation: Any, types: Any, given: Any = (), options: Any = None
        ) -> Any:
            if "_to_copy" in str(operation):
                cast.append(given[0].numel())
            return operation(*given, **(options or {}))

    tokens = torch.randn(3, 7, D).half()
    with torch.autocast("cpu", dtype=torch.bfloat16), Watch():
        cache = attention.cache_frames(tokens, dtype=torch.float32)
        found = [attention(torch.randn(3, D), cache)[0] for _ in range(3)]
    assert cast.count(tokens.numel()) == 1
    assert {value.dtype for value in (*found, *cache.blocks[0])} == {torch.bfloat16}
    assert attention.cache_frames(tokens, dtype=torch.float32).blocks[0][0].dtype == torch.float32


@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("role", ["token", "question"])
def test_queries_that_read_patches_ignore_cls(k: int, role: QueryRole) -> None:
    tail = DinoEncoder(tiny.dinov2()).tail(2)
    attention: ShallowAttention | DeepAttention = ShallowAttention(
        16, temperature=0.5, reads="patches"
    )
    if k:
        attention = DeepAttention(tail, role=role, reads="patches")
    tokens, query = torch.randn(3, 10, 16), torch.randn(3, 16)
    cache = attention.cache_frames(tokens)
    found, weights = attention(query, cache)
    assert weights.shape == (3, 10)
    assert (weights[:, 0] == 0).all()
    without = FrameCache([(key[:, :, 1:], value[:, :, 1:]) for key, value in cache.blocks])
    expected, shares = attention(query, without)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(weights[:, 1:], shares)
    assert cache.take(torch.tensor([1])).masked == 1


def test_with_the_attention_of_others_only_the_message_differs() -> None:
    attention = DeepAttention(DinoEncoder(tiny.dinov2()).tail(2), temperature=1e-3)
    for layer in (layer for layer in attention.modules() if isinstance(layer, nn.Linear)):
        nn.init.normal_(layer.weight, std=0.2)
    cache = attention.cache_frames(torch.randn(3, 10, 16))
    query, other = torch.randn(3, 16), torch.randn(3, 16)
    own, weights = attention(query, cache)
    same, _ = attention(query, cache, look=query)
    torch.testing.assert_close(same, own)
    found, lent = attention(query, cache, look=other)
    torch.testing.assert_close(lent, attention(other, cache)[1])
    assert not torch.allclose(lent, weights)
    for different in (own, attention(other, cache)[0]):
        assert (found - different).abs().max() > 1e-3


@pytest.mark.parametrize("count", [1, 4, 16])
def test_pooled_tokens_are_means_over_the_cells_of_a_grid(count: int) -> None:
    """CLS and a register stand in front and count nowhere."""
    tokens = torch.randn(2, 2 + 16, D)
    pooled = PooledTokens(D, count)
    found, attention = pooled(torch.randn(2, D), pooled.cache_frames(tokens))
    patches, size = tokens[:, 2:].view(2, 4, 4, D), 4 // math.isqrt(count)
    cells = [
        patches[:, row : row + size, column : column + size].mean(dim=(1, 2))
        for row in range(0, 4, size)
        for column in range(0, 4, size)
    ]
    torch.testing.assert_close(found, torch.stack(cells, dim=1))
    assert torch.equal(attention, torch.full((2, count), 1 / count))


def test_pooled_tokens_of_a_tail_are_the_final_ones(stock: Stock) -> None:
    encoder = DinoEncoder(stock)
    pixels = frames()
    pooled = PooledTokens(D, 4, tail=encoder.tail(2))
    with torch.no_grad():
        stored, final = (encoder(pixels, layer=layer) for layer in (L - 2, L))
        found, _ = pooled(torch.randn(3, D), pooled.cache_frames(stored))
        alone, _ = PooledTokens(D, 4)(final, PooledTokens(D, 4).cache_frames(final))
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert not [p for p in pooled.parameters() if p.requires_grad]
