from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fvlm.clips.batch import Captions
from fvlm.core.errors import FvlmError
from fvlm.model.autoregressive import run_autoregressive
from fvlm.model.foveated import FoveatedModel
from fvlm.model.inspect import inspect_clips
from fvlm.model.query_attention import patch_grid

MakeModel = Callable[..., FoveatedModel]
Clips = tuple[Tensor, Tensor]


@pytest.fixture(params=[0, 2], ids=["shallow", "deep"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> FoveatedModel:
    return make_model(deep=request.param, iterations=2)


def test_passes_are_those_of_the_model(model: FoveatedModel, clips: Clips) -> None:
    tokens, latents = clips
    B, T, N, _ = tokens.shape
    found = inspect_clips(model, tokens.half(), latents.half())
    assert list(found.passes) == ["coarse", "fine_1", "fine_2", "autoregressive"]
    with torch.no_grad():
        expected = model(tokens.half(), latents.half())
        cache = model.cache_clips(tokens.half())
        passes = [*model.run_passes(cache, B, T), run_autoregressive(model, cache, B, T)]
    assert torch.equal(found.passes["coarse"].latents, expected.coarse)
    assert torch.equal(found.passes["fine_2"].latents, expected.fine)
    for seen, output in zip(found.passes.values(), passes, strict=True):
        assert torch.equal(seen.visual, output.visual)
        assert torch.equal(seen.queries, output.queries)
        assert torch.equal(seen.attention, output.attention)
        assert seen.latents.shape == latents.shape
        assert seen.attention.shape == (B, T, N)


def test_attention_maps_put_a_patch_in_its_place(make_model: MakeModel) -> None:
    """A patch that the query is drawn to, alone among zeros, is where the map is largest."""
    model, row, column = make_model(), 1, 2
    with torch.no_grad():
        tokens = torch.zeros(1, 1, 10, 16)
        tokens[0, 0, 1 + 3 * row + column] = 5 * model.q_static
    found = inspect_clips(model, tokens, torch.zeros(1, 1, 4, 4, 4))
    assert (found.prefix_tokens, found.grid) == (1, (3, 3))
    maps = found.attention_maps("coarse")
    assert maps.shape == (1, 1, 3, 3)
    assert divmod(int(maps.argmax()), 3) == (row, column)
    assert maps.max() > 0.99


@pytest.mark.parametrize("registers", [0, 3, 4])
@pytest.mark.parametrize("side", [2, 3, 9, 16, 18])
def test_the_patches_are_the_largest_square_after_cls(registers: int, side: int) -> None:
    assert patch_grid(1 + registers + side * side) == (1 + registers, side)


@pytest.mark.parametrize("text", ["condition", "caption"])
def test_captions_are_needed_by_models_with_text_alone(
    make_model: MakeModel, clips: Clips, text: str
) -> None:
    captions = Captions(torch.ones(7, 2, dtype=torch.int64), torch.ones(7, 2, dtype=torch.bool))
    with pytest.raises(FvlmError, match=f"model.text is {text}: captions of the clips must"):
        inspect_clips(make_model(text=text), *clips)
    with pytest.raises(FvlmError, match=r"model.text is none: none must be given"):
        inspect_clips(make_model(), *clips, captions)
    assert len(inspect_clips(make_model(text=text), *clips, captions).passes) == 3
