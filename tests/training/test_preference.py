"""Preferences: what is known of the losses beforehand, and of what the first model said."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fvlm.clips.batch import Batch
from fvlm.model.foveated import FoveatedModel
from fvlm.training.objective import add_noise
from fvlm.training.preference import (
    PASSES,
    log_probabilities,
    pair_losses,
    preference_losses,
    reference_of,
    with_reference,
)
from tests.questions import ANSWERS, QUESTIONS, REJECTED, tokenizer
from tests.training.conftest import PREFER, Trial

CPU = torch.device("cpu")
PARAMS = Trial.params.model_copy(
    update={"batch_size": 4, "gradient_accumulation_steps": 1, "max_samples": 8}
)
Load = Callable[[range], Batch]


@pytest.fixture
def model(make_model: Callable[..., FoveatedModel]) -> FoveatedModel:
    return make_model(text="answer")


@pytest.fixture
def load(clips: tuple[Tensor, Tensor]) -> Load:
    """Reads the pairs at these positions; texts of other lengths than their clips' neighbours."""
    words = tokenizer("before")

    def read(positions: range) -> Batch:
        rows, texts = [p % 7 for p in positions], [p % 4 for p in positions]
        questions = [QUESTIONS[row] for row in texts]
        return Batch(
            clips[0][rows],
            clips[1][rows],
            [str(position) for position in positions],
            captions=words(questions, [ANSWERS[row] for row in texts]),
            rejected=words(questions, [REJECTED[row] for row in texts]),
        )

    return read


@pytest.fixture
def batch(model: FoveatedModel, load: Load) -> Batch:
    """The first pairs with what the model says of them before it is trained."""
    return with_reference(load, reference_of(model, load, PARAMS, CPU, None), range(4))


def losses(model: FoveatedModel, batch: Batch, **prefer: Any) -> dict[str, Tensor]:
    return preference_losses(model, batch, PARAMS, prefer=PREFER.model_copy(update=prefer))


def test_at_the_start_every_pair_is_a_coin(model: FoveatedModel, batch: Batch) -> None:
    for changes in ({}, {"beta": 5.0}, {"label_smoothing": 0.3}):
        found = losses(model, batch, **changes)
        for name in PASSES:
            assert found[f"loss_{name}"].item() == pytest.approx(math.log(2), abs=1e-5)
        assert found["loss"].item() == pytest.approx(2 * math.log(2), abs=1e-5)
    for beta in (0.1, 0.5):
        found = losses(model, batch, loss="ipo", beta=beta)
        for name in PASSES:
            expected = (1 / (2 * beta)) ** 2
            assert found[f"loss_{name}"].item() == pytest.approx(expected, rel=1e-4)


def test_the_losses_are_those_of_the_papers() -> None:
    gain = torch.tensor([-2.0, 0.0, 3.0])
    for beta, wrong in ((0.5, 0.0), (2.0, 0.2)):
        prefer = PREFER.model_copy(update={"beta": beta, "label_smoothing": wrong})
        expected = [
            -(1 - wrong) * math.log(1 / (1 + math.exp(-beta * g)))
            - wrong * math.log(1 / (1 + math.exp(beta * g)))
            for g in gain.tolist()
        ]
        torch.testing.assert_close(pair_losses(gain, prefer), torch.tensor(expected))
        ipo = prefer.model_copy(update={"loss": "ipo"})
        expected = [(g - 1 / (2 * beta)) ** 2 for g in gain.tolist()]
        torch.testing.assert_close(pair_losses(gain, ipo), torch.tensor(expected))


@torch.no_grad()
def test_gains_are_of_sums_and_for_ipo_of_means_over_tokens(
    model: FoveatedModel, batch: Batch
) -> None:
    """Of the better answer over the worse one: here 1 a token, and half of it."""
    assert batch.reference is not None
    lengths = torch.tensor(
        [[len(text.split()) + 1 for text in pair] for pair in zip(ANSWERS, REJECTED, strict=True)]
    )
    gains = lengths * torch.tensor([1.0, 0.5])
    ahead = replace(batch, reference=batch.reference - gains[:, None])
    expected = {
        "sigmoid": -F.logsigmoid(0.1 * (gains[:, 0] - gains[:, 1])).mean().item(),
        "ipo": (0.5 - 1 / (2 * 0.1)) ** 2,
    }
    for loss, value in expected.items():
        found = losses(model, ahead, loss=loss)
        for name in PASSES:
            assert found[f"loss_{name}"].item() == pytest.approx(value, rel=1e-4)
            share = (gains[:, 0] > gains[:, 1]).float().mean() if loss == "sigmoid" else 1.0
            assert found[f"gained_{name}"].item() == pytest.approx(float(share))


@torch.no_grad()
def test_the_first_model_saw_the_same_noise(model: FoveatedModel, load: Load) -> None:
    """Of each position; so every pair is a coin at the start with noise, too."""
    params = PARAMS.model_copy(update={"token_noise": 0.5})
    known = reference_of(model, load, params, CPU, None)
    for positions in (range(4), range(4, 8)):
        batch = add_noise(with_reference(load, known, positions), positions, params)
        found = preference_losses(model, batch, params, prefer=PREFER)
        for name in PASSES:
            assert found[f"loss_{name}"].item() == pytest.approx(math.log(2), abs=1e-5)


def test_the_better_answers_own_loss_and_the_coarse_pass_have_their_weights(
    model: FoveatedModel, batch: Batch
) -> None:
    said = model(batch.inputs, batch.latents, batch.captions)
    params = PARAMS.model_copy(update={"lambda_coarse": 0.25})
    prefer = PREFER.model_copy(update={"sft_weight": 0.5})
    found = preference_losses(model, batch, params, prefer=prefer)
    for name in PASSES:
        mean = getattr(said, f"caption_{name}").mean()
        torch.testing.assert_close(found[f"loss_{name}"], math.log(2) + 0.5 * mean)
        torch.testing.assert_close(found[f"chosen_{name}"], -mean)
    torch.testing.assert_close(found["loss"], found["loss_fine"] + 0.25 * found["loss_coarse"])


def test_without_beta_nothing_is_learned(model: FoveatedModel, batch: Batch) -> None:
    """The gradient at the start is that of the gains, times -beta / 2; every weight has one."""

    def gradient(beta: float) -> Tensor:
        model.zero_grad()
        losses(model, batch, beta=beta)["loss"].backward()
        parts = [value.grad for value in model.parameters() if value.requires_grad]
        assert all(part is not None for part in parts)
        return torch.cat([part.flatten() for part in parts if part is not None])

    one, little = gradient(0.1), gradient(1e-5)
    assert one.norm() > 1e-2
    torch.testing.assert_close(little, one * 1e-4, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_preferred_gains(
    model: FoveatedModel, batch: Batch, loss: str, swapped: bool
) -> None:
    """In both passes; with the labels exchanged the other answer does."""
    trained = batch
    if swapped:
        assert batch.reference is not None
        trained = replace(
            batch,
            captions=batch.rejected,
            rejected=batch.captions,
            reference=batch.reference.flip(2),
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(4):
        optimizer.zero_grad()
        found = losses(model, trained, loss=loss)
        found["loss"].backward()
        optimizer.step()
    for name in PASSES:
        assert losses(model, trained, loss=loss)[f"gained_{name}"] == 1
        assert losses(model, batch, loss=loss)[f"gained_{name}"] == float(not swapped)


@torch.no_grad()
def test_each_pass_is_held_to_the_same_pass_and_each_answer_to_itself(
    model: FoveatedModel, batch: Batch
) -> None:
    """As sums over tokens; anything else is no coin at the start."""
    found = model(batch.inputs, batch.latents, batch.captions, batch.rejected)
    lengths = [[len(text.split()) + 1 for text in texts] for texts in (ANSWERS, REJECTED)]
    assert batch.reference is not None
    for number, name in enumerate(PASSES):
        for column, which in enumerate(("caption", "rejected")):
            sums = -getattr(found, f"{which}_{name}") * torch.tensor(lengths[column])
            expected = batch.reference[:, number, column]
            torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(log_probabilities(found, batch, name), batch.reference[:, number])
    for axis, what in ((0, "pairs"), (1, "passes"), (2, "answers")):
        wrong = losses(model, replace(batch, reference=batch.reference.flip(axis)))
        for name in PASSES:
            assert abs(wrong[f"loss_{name}"].item() - math.log(2)) > 1e-3, what


@torch.no_grad()
def test_what_the_first_model_said_is_kept_for_a_training_that_is_resumed(
    model: FoveatedModel, load: Load, tmp_path: Path
) -> None:
    """A longer one has more positions than are kept."""
    first = reference_of(model, load, PARAMS, CPU, tmp_path)
    assert list(first) == list(range(8))
    longer = PARAMS.model_copy(update={"max_samples": 12})
    more = reference_of(model, load, longer, CPU, tmp_path)
    assert list(more) == list(range(12))
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    for params, expected in ((PARAMS, first), (longer, more)):
        resumed = reference_of(model, load, params, CPU, tmp_path)
        assert resumed.keys() == expected.keys()
        assert all(torch.equal(resumed[place], expected[place]) for place in expected)
    anew = reference_of(model, load, PARAMS, CPU, None)
    assert not any(torch.allclose(anew[place], first[place], atol=1e-3) for place in first)
