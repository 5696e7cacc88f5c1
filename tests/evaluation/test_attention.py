import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fvlm.clips.batch import Batch
from fvlm.evaluation.attention import (
    attention_figures,
    entropy_share,
    peak_times_uniform,
    query_similarity,
)
from fvlm.model.foveated import FoveatedModel

N = 10


def test_even_attention_has_full_entropy_and_a_peak_of_one() -> None:
    even = torch.full((2, 3, N), 0.5 / N)  # the other half the query gives to itself
    torch.testing.assert_close(entropy_share(even), torch.ones(2, 3))
    torch.testing.assert_close(peak_times_uniform(even), torch.ones(2, 3))


def test_attention_on_one_token_has_no_entropy_and_the_largest_peak() -> None:
    single = torch.eye(N)[None]
    torch.testing.assert_close(entropy_share(single), torch.zeros(1, N))
    torch.testing.assert_close(peak_times_uniform(single), torch.full((1, N), float(N)))


def test_attention_on_half_of_the_tokens() -> None:
    half = torch.cat([torch.ones(N // 2), torch.zeros(N // 2)])
    assert entropy_share(half).item() == pytest.approx(math.log(N // 2) / math.log(N))
    assert peak_times_uniform(half).item() == pytest.approx(2.0)


def test_similarity_is_a_cosine_and_ignores_length() -> None:
    queries = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    expected = torch.tensor([[1, 1, 0, -1], [1, 1, 0, -1], [0, 0, 1, 0], [-1, -1, 0, 1.0]])
    torch.testing.assert_close(query_similarity(queries), expected)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_figures_do_not_depend_on_the_batch_size(
    make_model: Callable[..., FoveatedModel], clips: tuple[Tensor, Tensor], batch_size: int
) -> None:
    model, (tokens, latents) = make_model(deep=2, iterations=2), clips

    def figures(size: int) -> dict[str, float]:
        return attention_figures(
            model,
            lambda rows: Batch(tokens[list(rows)], latents[list(rows)], keys=[]),
            len(tokens),
            batch_size=size,
            device=torch.device("cpu"),
        )

    assert figures(batch_size) == pytest.approx(figures(7), rel=1e-4)


def test_figures_of_a_model_that_follows_pointers(
    pointer_model: FoveatedModel, pointer_clips: tuple[Tensor, Tensor]
) -> None:
    """The coarse pass reads all 8 tokens alike, the fine pass (but for frame 1) a single one."""
    tokens, latents = pointer_clips
    found = attention_figures(
        pointer_model, lambda _: Batch(tokens, latents, []), 96, batch_size=96, device=_CPU
    )
    frames = tokens.shape[1]
    assert found["attention_entropy_coarse"] == pytest.approx(1.0)
    assert found["attention_peak_coarse"] == pytest.approx(1.0)
    assert found["attention_entropy_fine"] == pytest.approx(1 / frames, abs=1e-3)
    assert found["attention_peak_fine"] == pytest.approx((8 * (frames - 1) + 1) / frames, rel=1e-3)
    assert found["query_similarity"] == pytest.approx(1 / 8, abs=0.05)  # the same key by chance


_CPU = torch.device("cpu")
