from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fvlm.model.autoregressive import run_autoregressive
from fvlm.model.foveated import FoveatedModel

MakeModel = Callable[..., FoveatedModel]


@pytest.fixture(params=[0, 2], ids=["shallow", "deep"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> FoveatedModel:
    return make_model(deep=request.param)


@torch.inference_mode()
def test_equals_a_sequential_reference_without_cache(
    model: FoveatedModel, clips: tuple[Tensor, Tensor]
) -> None:
    tokens = clips[0][:3]
    B, T = tokens.shape[:2]
    found = run_autoregressive(model, model.cache_clips(tokens), B, T)
    for clip in range(B):
        sequence = model.mode_tokens["fine"][None, None]
        query = model.q_init[None, None]
        for t in range(T):
            states = model.language(inputs_embeds=sequence, use_cache=False).last_hidden_state
            if t > 0:
                query = model.to_query(states[:, -1:])
            frame = model.cache_clips(tokens[clip : clip + 1, t : t + 1])
            visual, attention = model.read_frames(frame.frames, query)
            # Rounding of other matrix shapes; a wrong frame or query differs by about 1.
            for got, expected in (
                (found.predictor, states[0, -1]),
                (found.queries, query[0, 0]),
                (found.visual, visual[0, 0]),
                (found.attention, attention[0, 0]),
            ):
                torch.testing.assert_close(got[clip, t], expected, rtol=1e-4, atol=1e-4)
            sequence = torch.cat([sequence, visual], dim=1)


@torch.inference_mode()
def test_is_where_repeated_fine_passes_end(
    make_model: MakeModel, clips: tuple[Tensor, Tensor]
) -> None:
    """Fine pass k has the right queries up to frame k: after T - 1 passes nothing changes."""
    tokens = clips[0]
    B, T = tokens.shape[:2]
    model = make_model(iterations=T - 1)
    cache = model.cache_clips(tokens)
    passes = model.run_passes(cache, B, T)
    found = run_autoregressive(model, cache, B, T)
    torch.testing.assert_close(found.predictor, passes[-1].predictor, rtol=1e-4, atol=1e-4)
    assert (found.predictor - passes[1].predictor).abs().max() > 1e-2
