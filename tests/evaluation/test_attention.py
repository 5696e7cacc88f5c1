import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fvlm.clips.batch import Batch
from fvlm.core.document import flatten
from fvlm.evaluation.attention import (
    attention_figures,
    cls_share,
    entropy_share,
    peak_times_uniform,
    query_similarity,
)
from fvlm.model.foveated import FoveatedModel

N, PATCHES = 10, 9


def test_even_attention_has_full_entropy_and_a_peak_of_one() -> None:
    even = torch.full((2, 3, N), 0.5 / N)  # the other half the query gives to itself
    torch.testing.assert_close(entropy_share(even), torch.ones(2, 3))
    torch.testing.assert_close(peak_times_uniform(even), torch.ones(2, 3))
    torch.testing.assert_close(cls_share(even), torch.full((2, 3), 1 / N))


def test_attention_on_one_patch_has_no_entropy_and_the_largest_peak() -> None:
    single = torch.eye(N)[None, 1:]
    torch.testing.assert_close(entropy_share(single), torch.zeros(1, PATCHES))
    torch.testing.assert_close(peak_times_uniform(single), torch.full((1, PATCHES), 9.0))
    torch.testing.assert_close(cls_share(single), torch.zeros(1, PATCHES))


def test_what_cls_gets_is_its_share_and_changes_nothing_else() -> None:
    patches = torch.rand(5, PATCHES)
    heavy = torch.cat([3 * patches.sum(dim=1, keepdim=True), patches], dim=1)
    light = torch.cat([torch.zeros(5, 1), patches], dim=1)
    torch.testing.assert_close(cls_share(heavy), torch.full((5,), 0.75))
    torch.testing.assert_close(entropy_share(heavy), entropy_share(light))
    torch.testing.assert_close(peak_times_uniform(heavy), peak_times_uniform(light))
    alone = torch.eye(N)[:1]
    found = cls_share(alone).item(), peak_times_uniform(alone).item()
    assert found == pytest.approx((1, 1))  # the patches get none, alike


def test_attention_on_some_of_the_patches() -> None:
    some = torch.cat([torch.zeros(1), torch.ones(3), torch.zeros(6)])
    assert entropy_share(some).item() == pytest.approx(math.log(3) / math.log(PATCHES))
    assert peak_times_uniform(some).item() == pytest.approx(3.0)


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
        found = attention_figures(
            model,
            lambda rows: Batch(tokens[list(rows)], latents[list(rows)], keys=[]),
            len(tokens),
            batch_size=size,
            device=torch.device("cpu"),
        )
        return flatten(found)

    assert figures(batch_size) == pytest.approx(figures(7), rel=1e-4)


def test_figures_of_a_model_that_follows_pointers(
    pointer_model: FoveatedModel, pointer_clips: tuple[Tensor, Tensor]
) -> None:
    """The coarse pass reads all 8 tokens alike, the fine pass (but for frame 1) a single one.

    4 of the 8 stand for CLS and registers: where the pointer leads there, the patches are alike.
    """
    tokens, latents = pointer_clips
    found = attention_figures(
        pointer_model, lambda _: Batch(tokens, latents, []), 96, batch_size=96, device=_CPU
    )
    later = 1 - 1 / tokens.shape[1]  # share of frames that a predicted query reads
    assert set(found.passes) == {"coarse", "fine", "autoregressive"}
    coarse, fine = found.passes["coarse"], found.passes["fine"]
    assert (coarse.entropy, coarse.peak, coarse.cls_share) == pytest.approx((1, 1, 0.5))
    assert fine.cls_share == pytest.approx(0.5, abs=0.05)
    assert fine.entropy == pytest.approx(1 - later * (1 - fine.cls_share), abs=0.05)
    assert fine.peak == pytest.approx(1 + 3 * later * (1 - fine.cls_share), rel=0.05)
    own = found.passes["autoregressive"]
    assert own.model_dump() == pytest.approx(fine.model_dump(), rel=1e-4)
    assert found.query_similarity == pytest.approx(1 / 8, abs=0.05)  # the same key by chance


_CPU = torch.device("cpu")
