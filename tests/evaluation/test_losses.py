from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fvlm.clips.batch import Batch, Captions
from fvlm.core.document import flatten
from fvlm.core.errors import FvlmError
from fvlm.evaluation.baselines import fit_baselines
from fvlm.evaluation.losses import (
    EvaluateParams,
    arm_losses,
    evaluate_clips,
    losses_with_queries,
    other_group,
    random_queries,
)
from fvlm.model.foveated import FoveatedModel
from fvlm.model.query_attention import DeepAttention
from fvlm.statistics.arms import ARMS, CONTROLS, ClipName, Losses
from fvlm.statistics.ratio import UNDEFINED
from fvlm.statistics.summary import About, clip_rows, summarize
from fvlm.statistics.verdict import decide

Clips = tuple[Tensor, Tensor]
MakeModel = Callable[..., FoveatedModel]
NOISE = 0.1


def evaluate(model: FoveatedModel, clips: Clips, *, batch_size: int = 4, seed: int = 0) -> Losses:
    tokens, latents = clips
    return evaluate_clips(
        model,
        lambda rows: batch_of((tokens, latents), rows),
        clip_names(len(tokens)),
        batch_size=batch_size,
        seed=seed,
        device=torch.device("cpu"),
        baselines=fit_baselines([latents]),
    )


def batch_of(clips: Clips, rows: range = range(7)) -> Batch:
    tokens, latents = (part[rows.start : rows.stop] for part in clips)
    return Batch(tokens, latents, [f"clip-{row}" for row in rows])


def clip_names(count: int) -> list[ClipName]:
    return [ClipName(f"clip-{number}", f"video {number}") for number in range(count)]


def test_every_arm_comes_out_as_built(pointer_model: FoveatedModel, pointer_clips: Clips) -> None:
    """Only the right query finds the value; see the pointer corpus for the expected losses."""
    losses = evaluate(pointer_model, pointer_clips)
    assert list(losses) == list(ARMS)
    mean = {arm: values[:, 2:].mean() for arm, values in losses.items()}
    noise, spread = NOISE**2, 0.15  # relative; 960 frames
    assert mean["fine"] == pytest.approx(noise, rel=0.05)
    assert mean["autoregressive"] == pytest.approx(mean["fine"], rel=1e-3)
    # The mean of 8 values, one of them right: (1 - 1/8)^2 + 7/64 = 7/8.
    assert mean["coarse"] == pytest.approx(7 / 8 + noise, rel=spread)
    assert mean["static_in_fine"] == pytest.approx(mean["coarse"], rel=1e-6)
    # Another clip's pointer is right in one of 8 cases; else two independent values: 2 x 7/8.
    assert mean["shuffled"] == pytest.approx(7 / 4 + noise, rel=spread)
    assert mean["random"] > 1.2
    assert mean["persistence"] == pytest.approx(2 * (1 + noise), rel=spread)


def test_the_verdict_on_a_model_that_needs_its_queries(
    pointer_model: FoveatedModel, pointer_clips: Clips
) -> None:
    losses = evaluate(pointer_model, pointer_clips)
    trained = dict.fromkeys(range(3), losses)
    found = summarize(trained, clip_names(96), samples=1000, seed=0).held_out
    assert decide(found) == "very_promising"
    figures = flatten(found)
    assert figures["coarse_fine_ratio_dynamic"] > 50
    assert figures["ratio_static_in_fine_dynamic"] == pytest.approx(1.0)
    assert figures["ratio_shuffled_dynamic"] < 0.9
    assert figures["ratio_random_dynamic"] < 0.9


def test_first_two_frames_cannot_gain(pointer_model: FoveatedModel, pointer_clips: Clips) -> None:
    """The mode tokens aside, coarse and fine predict frames 1 and 2 from the same states."""
    with torch.no_grad():
        pointer_model.mode_tokens["fine"].copy_(pointer_model.mode_tokens["coarse"])
    losses = evaluate(pointer_model, pointer_clips)
    for arm in ("fine", "autoregressive", *CONTROLS):
        np.testing.assert_allclose(losses[arm][:, :2], losses["coarse"][:, :2], rtol=1e-5)


def test_a_head_that_ignores_the_state_makes_every_arm_equal(
    make_model: MakeModel, clips: Clips
) -> None:
    model = make_model()
    with torch.no_grad():
        for parameter in model.head.film[-1].parameters():
            parameter.zero_()
    losses = evaluate(model, clips)
    found = summarize({0: losses}, clip_names(7), samples=200, seed=0).held_out
    assert decide(found) == "inconclusive"
    figures = flatten(found)
    assert figures["coarse_fine_ratio"] == pytest.approx(1.0, abs=1e-6)
    for arm in ("autoregressive", *CONTROLS):
        assert figures[f"ratio_{arm}"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_batch_size_changes_rounding_only(
    make_model: MakeModel, clips: Clips, batch_size: int
) -> None:
    """Other matrix shapes sum in another order: float32 keeps about 6 digits through the layers."""
    model = make_model(deep=2, iterations=2)
    expected, found = evaluate(model, clips), evaluate(model, clips, batch_size=batch_size)
    for arm in ARMS:
        np.testing.assert_allclose(found[arm], expected[arm], rtol=1e-4, err_msg=arm)


def test_evaluating_twice_gives_the_same_losses(make_model: MakeModel, clips: Clips) -> None:
    model = make_model()
    first, again, other = (evaluate(model, clips, seed=seed) for seed in (0, 0, 1))
    for arm in ARMS:
        np.testing.assert_array_equal(first[arm], again[arm])
        assert np.array_equal(first[arm], other[arm], equal_nan=True) == (arm != "random")


def test_controls_change_nothing_but_the_queries(make_model: MakeModel, clips: Clips) -> None:
    """Given its own queries again, the control pass is the fine pass."""
    model = make_model(iterations=2)
    batch = batch_of(clips)
    losses, predicted = arm_losses(model, batch, seed=0)
    torch.testing.assert_close(losses_with_queries(model, batch, predicted), losses["fine"])


def test_shuffled_uses_the_queries_of_the_next_video(make_model: MakeModel, clips: Clips) -> None:
    model, batch = make_model(), batch_of(clips)
    _, predicted = arm_losses(model, batch, seed=0)
    expected = losses_with_queries(model, batch, predicted.roll(-1, 0))
    found = evaluate(model, clips, batch_size=2)
    np.testing.assert_allclose(found["shuffled"], expected.numpy(), rtol=1e-4)
    assert np.abs(found["shuffled"] - found["fine"]).max() > 1e-3


def test_a_partner_is_never_of_the_same_video() -> None:
    assert other_group(["a", "b", "c"]) == [1, 2, 0]
    assert other_group(["a", "a", "b", "b"]) == [2, 2, 0, 0]
    assert other_group(["a", "b", "a", "a"]) == [1, 2, 1, 1]
    assert other_group(["a", "a"]) == [-1, -1]
    assert other_group([]) == []


def test_one_video_leaves_shuffled_undefined(make_model: MakeModel, clips: Clips) -> None:
    tokens, latents = (part[:1] for part in clips)
    losses = evaluate(make_model(), (tokens, latents))
    assert np.isnan(losses["shuffled"]).all()
    found = summarize({0: losses}, clip_names(1), samples=200, seed=0).held_out
    assert found.arms["shuffled"].coarse_ratio == UNDEFINED
    assert found.coarse_fine_ratio.low is None
    assert found.coarse_fine_ratio.value is not None
    assert decide(found) == "inconclusive"


def test_random_queries_keep_lengths_and_the_first_query() -> None:
    predicted = torch.randn(3, 6, 50) * torch.arange(1, 4)[:, None, None]
    found = random_queries(predicted, keys=["a", "b", "c"], seed=0)
    torch.testing.assert_close(found.norm(dim=-1), predicted.norm(dim=-1))
    assert torch.equal(found[:, 0], predicted[:, 0])
    alone = random_queries(predicted[1:2], keys=["b"], seed=0)
    assert torch.equal(found[1:2], alone)
    similarity = torch.cosine_similarity(found[:, 1:], predicted[:, 1:], dim=-1)
    assert similarity.abs().max() < 0.6


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_partners_are_of_another_film(make_model: MakeModel, clips: Clips, batch_size: int) -> None:
    """Queries of another clip of the same film would know what this clip shows."""
    latents = clips[1]
    films = [ClipName(f"clip-{n}", f"video {n}", f"film {n // 4}") for n in range(7)]
    model, baselines, loaded = make_model(), fit_baselines([latents]), Counter[int]()

    def load(rows: range) -> Batch:
        loaded.update(rows)
        return batch_of(clips, rows)

    device = torch.device("cpu")
    found = evaluate_clips(
        model, load, films, batch_size=batch_size, seed=0, device=device, baselines=baselines
    )
    # Nothing is kept of clips that were read: only the last film's partner is met after it.
    assert [loaded[row] for row in range(7)] == [1, 1, 1, 1, 2, 2, 2]
    _, predicted = arm_losses(model, batch_of(clips), seed=0)
    expected = losses_with_queries(model, batch_of(clips), predicted[[4, 4, 4, 4, 0, 0, 0]])
    np.testing.assert_allclose(found["shuffled"], expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize("deep", [0, 2])
def test_masked_arms_do_not_depend_on_cls(make_model: MakeModel, clips: Clips, deep: int) -> None:
    """CLS is the first of the 10 tokens."""
    tokens, latents = clips
    changed = tokens.clone()
    changed[:, :, 0] = 3 * torch.randn(7, 5, 16)
    before, after = (evaluate(make_model(deep=deep), (t, latents)) for t in (tokens, changed))
    for arm in ("coarse", "fine"):
        masked = f"{arm}_cls_masked"
        np.testing.assert_allclose(after[masked], before[masked], rtol=1e-4)
        assert np.abs(after[arm] - before[arm]).max() > 1e-3
        assert np.abs(before[arm] - before[masked]).max() > 1e-3


def test_message_only_is_an_arm_of_deep_queries_that_are_tokens(
    make_model: MakeModel, clips: Clips
) -> None:
    assert "message_only" not in evaluate(make_model(), clips)
    question = make_model(deep=2)
    assert isinstance(question.attention, DeepAttention)
    question.attention.role = "question"
    assert "message_only" not in evaluate(question, clips)
    model = make_model(deep=2)
    losses = evaluate(model, clips)
    for arm in ("fine", "static_in_fine"):
        assert np.abs(losses["message_only"] - losses[arm]).max() > 1e-5  # rounding: 1e-7
    with torch.no_grad():  # all attention even, wherever a query wants to look
        for name, parameter in model.attention.named_parameters():
            if ".q." in name:
                parameter.zero_()
    even = evaluate(model, clips)
    np.testing.assert_allclose(even["message_only"], even["fine"], rtol=1e-4)
    assert np.abs(even["static_in_fine"] - even["fine"]).max() > 1e-4


def test_captions_have_their_own_ratio_over_the_clips_that_have_one(
    make_model: MakeModel, clips: Clips
) -> None:
    """Every arm reads the captions; the loss of the passes' captions comes beside the arms."""
    tokens, latents = clips
    model = make_model()
    model.text = "caption"
    mask = torch.arange(3) < torch.tensor([3, 0, 2, 1, 3, 0, 2])[:, None]
    captions = Captions(torch.randint(0, 4, (7, 3)) * mask, mask)

    def load(rows: range) -> Batch:
        own = slice(rows.start, rows.stop)
        text = Captions(captions.ids[own], captions.mask[own])
        return replace(batch_of(clips, rows), captions=text)

    device = torch.device("cpu")
    losses = evaluate_clips(
        model,
        load,
        clip_names(7),
        batch_size=4,
        seed=0,
        device=device,
        baselines=fit_baselines([latents]),
    )
    with torch.inference_mode():
        expected = model(tokens, latents, captions)
    assert expected.caption_fine is not None
    found = losses["caption_fine"][:, 0]
    assert np.isnan(found).tolist() == [False, True, False, False, False, True, False]
    said = mask.any(1).numpy()
    np.testing.assert_allclose(found[said], expected.caption_fine.numpy()[said], rtol=1e-4)
    plain = evaluate(make_model(), clips)
    np.testing.assert_allclose(losses["fine"], plain["fine"], rtol=1e-4)
    summary = summarize({0: losses}, clip_names(7), samples=200, seed=0, about=About(vocabulary=4))
    figures = flatten(summary.held_out)
    ratio = figures["caption_loss_coarse"] / figures["caption_loss_fine"]
    assert figures["caption_coarse_fine_ratio"] == pytest.approx(ratio)
    rows = list(clip_rows({0: losses}, clip_names(7)))
    assert [row.losses["caption_fine"] is None for row in rows] == np.isnan(found).tolist()
    assert "caption_fine" not in summary.frames[0].losses


def test_a_loss_that_is_not_finite_names_the_clip(make_model: MakeModel, clips: Clips) -> None:
    tokens, latents = clips
    latents[5, 2] = torch.nan
    with pytest.raises(FvlmError, match="not finite for clips: clip-5"):
        evaluate(make_model(), (tokens, latents))


def test_fewer_than_three_frames_are_refused() -> None:
    with pytest.raises(ValidationError):
        EvaluateParams(batch_size=1, num_frames=2, max_clips=0, bootstrap_samples=100, seed=0)
