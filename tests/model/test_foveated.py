import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import LlamaModel

from fvlm.core.device import autocast
from fvlm.model.film_head import ResidualHead
from fvlm.model.foveated import FoveatedModel, Head, frame_losses
from fvlm.model.query_attention import ShallowAttention
from tests import tiny

B, T, N, D, H = 2, 5, 10, 16, 24  # N: CLS and 3 x 3 patches
LATENT = (4, 4, 4)


def make_model(
    *,
    deep: int = 0,
    temperature: float = 1.0,
    iterations: int = 1,
    head: Head = "film",
    pooled: int = 0,
) -> FoveatedModel:
    torch.manual_seed(1)
    model = tiny.foveated(
        deep=deep, temperature=temperature, iterations=iterations, head=head, pooled=pooled
    )
    if isinstance(model.head, ResidualHead):  # as if it had been trained
        torch.nn.init.constant_(model.head.gain, 0.8)
        for parameter in model.head.after[-1].parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(
    params=[(0, "film"), (2, "film"), (0, "residual")], ids=["shallow", "deep", "residual"]
)
def model(request: pytest.FixtureRequest) -> FoveatedModel:
    deep, head = request.param
    return make_model(deep=deep, iterations=2, head=head)


def clip(batch: int = B) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, T, N, D), torch.randn(batch, T, *LATENT)


@pytest.mark.parametrize("frame", range(T))
@torch.no_grad()
def test_a_prediction_ignores_its_own_and_all_later_frames(
    model: FoveatedModel, frame: int
) -> None:
    tokens, latents = clip()
    before = model(tokens, latents)
    tokens[:, frame:], latents[:, frame:] = torch.randn(1), 9.0
    after = model(tokens, latents)
    for one, other in ((before.coarse, after.coarse), (before.fine, after.fine)):
        torch.testing.assert_close(one[:, : frame + 1], other[:, : frame + 1])
        if frame + 1 < T:
            assert (one[:, frame + 1] - other[:, frame + 1]).abs().max() > 1e-3


@torch.no_grad()
def test_every_earlier_frame_matters(model: FoveatedModel) -> None:
    """Through its token (both passes) and, for the frame just before, through its latent."""
    tokens, latents = clip()
    before = model(tokens, latents)
    for frame in range(T - 1):
        changed = tokens.clone()
        changed[:, frame] = torch.randn(B, N, D)
        after = model(changed, latents)
        assert (before.coarse[:, T - 1] - after.coarse[:, T - 1]).abs().max() > 1e-6
        assert (before.fine[:, T - 1] - after.fine[:, T - 1]).abs().max() > 1e-6
    latents[:, T - 2] += 1
    assert (before.fine[:, T - 1] - model(tokens, latents).fine[:, T - 1]).abs().max() > 1e-3


@torch.no_grad()
def test_a_query_comes_from_the_frame_before_in_the_pass_before(model: FoveatedModel) -> None:
    tokens, _ = clip()
    passes = model.run_passes(model.cache_clips(tokens), B, T)
    assert len(passes) == 3
    for earlier, later in pairwise(passes):
        assert torch.equal(later.queries, earlier.next_queries)
        torch.testing.assert_close(later.queries[:, 0], model.q_init.expand(B, -1))
        # The state at v_t is the predictor of frame t + 1, and W_q of it the query for frame t + 1.
        expected = earlier.predictor[:, 1:] @ model.to_query.weight.T
        torch.testing.assert_close(later.queries[:, 1:], expected)
    assert torch.equal(passes[0].queries, model.q_static.expand(B, T, -1))


@torch.no_grad()
def test_states_against_a_frame_by_frame_reference(model: FoveatedModel) -> None:
    """The whole computation once more, one frame after the other, without any shared code path."""
    tokens, latents = clip(1)
    found = model(tokens, latents)

    def one_pass(queries: list[Tensor], mode: str) -> list[Tensor]:
        sequence = [model.mode_tokens[mode]]
        for t, query in enumerate(queries):
            token, _ = model.attention(query[None], model.attention.cache_frames(tokens[:, t]))
            sequence.append(model.visual_norm(model.to_visual(token))[0])
        return [
            model.language(inputs_embeds=torch.stack(sequence[: t + 1])[None])[0][0, -1]
            for t in range(len(sequence))
        ]

    def predict(states: list[Tensor]) -> Tensor:
        previous = [model.y_init, *latents[0, :-1]]
        return torch.stack(
            [
                model.head(state[None, None], model.head.encode_previous(latent[None, None]))[0, 0]
                for state, latent in zip(states[:-1], previous, strict=True)
            ]
        )

    states = coarse = one_pass([model.q_static] * T, "coarse")
    for _ in range(2):
        queries = [model.q_init, *(model.to_query(state) for state in states[1:-1])]
        states = one_pass(queries, "fine")
    torch.testing.assert_close(found.coarse[0], predict(coarse), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.fine[0], predict(states), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_fine_equals_coarse_when_queries_and_mode_tokens_are_equal(model: FoveatedModel) -> None:
    tokens, _ = clip()
    cache = model.cache_clips(tokens)
    static = model.static_queries(B, T)
    coarse = model.run_pass(cache, static, mode="coarse")
    assert not torch.equal(
        coarse.predictor, model.run_pass(cache, static, mode="fine").predictor
    ), "the mode token has no effect"
    model.mode_tokens["fine"].copy_(model.mode_tokens["coarse"])
    assert torch.equal(coarse.predictor, model.run_pass(cache, static, mode="fine").predictor)


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch_mates(model: FoveatedModel) -> None:
    tokens, latents = clip(4)
    tokens[2] *= 50
    together = model(tokens, latents)
    for index in range(4):
        alone = model(tokens[index : index + 1], latents[index : index + 1])
        for one, other in ((together.coarse, alone.coarse), (together.fine, alone.fine)):
            found = frame_losses(one[index : index + 1], latents[index : index + 1])
            expected = frame_losses(other, latents[index : index + 1])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_learned_part_and_no_frozen_one(model: FoveatedModel) -> None:
    tokens, latents = clip()
    prediction = model(tokens, latents)
    loss = frame_losses(prediction.fine, latents).mean()
    (loss + frame_losses(prediction.coarse, latents).mean()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("attention.tail.") or name == "language.embed_tokens.weight":
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_fine_loss_alone_trains_the_static_query(model: FoveatedModel) -> None:
    """Predicted queries come out of the coarse pass; its graph must not be cut."""
    tokens, latents = clip()
    frame_losses(model(tokens, latents).fine, latents).mean().backward()
    for name in ("q_static", "q_init", "to_query.weight", "mode_tokens.coarse"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name


def test_queries_start_with_unit_variance_and_do_not_attend_uniformly() -> None:
    """Standard deviation 0.02 gave an entropy of 5.548 where 5.549 is uniform."""
    width, count = 384, 257
    model = FoveatedModel(
        language=LlamaModel(tiny.llama(num_hidden_layers=2, initializer_range=0.2)),
        attention=ShallowAttention(width, temperature=1.0),
        latent_shape=LATENT,
        fine_iterations=1,
    )
    assert 0.85 < model.q_static.std() < 1.15
    assert 0.85 < model.q_init.std() < 1.15
    cache = model.cache_clips(torch.randn(1, 1, count, width)).frames
    for query in (model.q_static, model.q_init):
        _, weights = model.read_frames(cache, query[None, None])
        assert math.log(count) + (weights * weights.log()).sum() > 0.2


def test_the_query_projection_has_no_bias() -> None:
    assert make_model().to_query.bias is None


def test_visual_tokens_are_normalised_each_on_its_own(model: FoveatedModel) -> None:
    tokens, _ = clip()
    visual, _ = model.read_frames(model.cache_clips(tokens).frames, model.static_queries(B, T))
    torch.testing.assert_close(visual.square().mean(-1), torch.ones(B, T), rtol=1e-3, atol=1e-3)


def test_the_first_frame_is_conditioned_on_the_learned_latent(model: FoveatedModel) -> None:
    assert model.y_init.abs().sum() == 0
    tokens, latents = clip()
    before = model(tokens, latents)
    torch.nn.init.ones_(model.y_init)
    after = model(tokens, latents)
    assert not torch.equal(before.fine[:, 0], after.fine[:, 0])
    torch.testing.assert_close(before.fine[:, 1:], after.fine[:, 1:])


def difference(one: FoveatedModel, other: FoveatedModel) -> tuple[float, float]:
    """Largest change of the coarse and of the fine prediction, with all common weights equal."""
    other.load_state_dict(one.state_dict(), strict=False)
    torch.manual_seed(5)
    tokens, latents = clip()
    with torch.no_grad():
        first, second = one(tokens, latents), other(tokens, latents)
    coarse, fine = first.coarse - second.coarse, first.fine - second.fine
    return coarse.abs().max().item(), fine.abs().max().item()


def test_query_layers_change_the_computation() -> None:
    for one, other in ((0, 1), (1, 2)):
        assert min(difference(make_model(deep=one), make_model(deep=other))) > 1e-4


def test_temperature_changes_the_computation() -> None:
    assert min(difference(make_model(), make_model(temperature=2.0))) > 1e-4


def test_fine_iterations_change_the_fine_prediction_only() -> None:
    coarse, fine = difference(make_model(), make_model(iterations=2))
    assert coarse == 0
    assert fine > 1e-6


def test_bfloat16_computes_close_to_float32_on_float32_weights(model: FoveatedModel) -> None:
    tokens, latents = clip()
    exact = model(tokens, latents)
    with autocast(torch.device("cpu"), "bfloat16"):
        rounded = model(tokens, latents)
    # What is added to the previous latent, in float32, is rounded; the sum is not.
    is_sum = isinstance(model.head, ResidualHead)
    assert rounded.fine.dtype == (torch.float32 if is_sum else torch.bfloat16)
    torch.testing.assert_close(rounded.fine.float(), exact.fine, rtol=0.1, atol=0.1)
    loss = frame_losses(rounded.fine, latents)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_tokens_and_latents_enter_as_they_are_stored(model: FoveatedModel) -> None:
    tokens, latents = (value.half() for value in clip())
    stored = model(tokens, latents)
    assert torch.equal(stored.fine, model(tokens.float(), latents.float()).fine)


@pytest.mark.parametrize("deep", [0, 2])
@pytest.mark.parametrize("pooled", [1, 4])
@torch.no_grad()
def test_pooled_tokens_of_all_earlier_frames_predict_and_no_others(pooled: int, deep: int) -> None:
    model = make_model(deep=deep, pooled=pooled)
    tokens, latents = clip()
    before = model(tokens, latents)
    assert torch.equal(before.coarse, before.fine)
    for frame in range(T):
        for patch in (1, N - 1):  # of the first cell, of the last
            changed = tokens.clone()
            changed[:, frame, patch] += 9
            moved = (model(changed, latents).coarse - before.coarse).abs().amax(dim=(0, 2, 3, 4))
            assert not moved[: frame + 1].any()
            assert (moved[frame + 1 :] > 1e-6).all()


def test_a_model_of_pooled_tokens_trains_all_but_its_queries() -> None:
    model = make_model(pooled=4)
    tokens, latents = clip()
    frame_losses(model(tokens, latents).coarse, latents).mean().backward()
    free = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert free == {"q_static", "q_init", "mode_tokens.fine", "to_query.weight"}
    for name, parameter in model.named_parameters():
        if name not in free and name != "language.embed_tokens.weight":
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_frame_losses_are_means_in_float32() -> None:
    prediction, latents = torch.randn(B, T, *LATENT), torch.randn(B, T, *LATENT)
    expected = (prediction.bfloat16().float() - latents.half().float()).square().mean((2, 3, 4))
    found = frame_losses(prediction.bfloat16(), latents.half())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
