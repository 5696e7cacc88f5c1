"""Held-out clips on the way: what they show, what it costs, and that nothing depends on it."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fvlm.clips.batch import Batch
from fvlm.training.loop import Losses, OutOfTimeError
from fvlm.training.objective import batch_losses
from fvlm.training.validation import COST, Validation, measure, of_these_clips, schedule

MakeTrial = Callable[[str], Any]  # Trial of conftest.py, which tests cannot import


def held_out(trial: Any, clips: int = 5) -> Validation:
    drawn = torch.Generator().manual_seed(3)
    tokens, latents = (
        torch.randn(clips, trial.params.num_frames, *values.shape[2:], generator=drawn).half()
        for values in (trial.tokens, trial.latents)
    )

    def load(places: range) -> Batch:
        rows = list(places)
        return Batch(tokens[rows], latents[rows], [f"held out {row}" for row in rows])

    return Validation(load, clips, frozenset({1, 3, 5}))


def history(checkpoint: dict[str, bytes]) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads(checkpoint["state.json"])["history"]
    return rows


@pytest.mark.parametrize("late", [False, True])
def test_the_training_is_the_same_bit_for_bit_with_and_without(
    make_trial: MakeTrial, late: bool
) -> None:
    found = []
    for validated in (False, True):
        trial = make_trial(str(validated))
        trial.late, trial.dropout = late, 0.3  # what is random in a step would tell
        trial.validation = held_out(trial) if validated else None
        trial.run()
        found.append(trial.last_checkpoint())
    plain, shown = found
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert plain[name] == shown[name]
    rows = history(shown)
    assert [row["step"] for row in rows if "val_loss_fine" in row] == [1, 3, 5]
    own = [{k: v for k, v in row.items() if not k.startswith("val_")} for row in rows]
    assert own == history(plain)


def test_stopped_and_resumed_has_the_same_curve(make_trial: MakeTrial) -> None:
    whole, stopped = make_trial("whole"), make_trial("stopped")
    for trial in (whole, stopped):
        trial.validation = held_out(trial)
    whole.run()

    def on_forward(done: int) -> None:
        if done == 6:  # the first forward behind the first point: 4 of training, 2 of held-out
            os.kill(os.getpid(), signal.SIGTERM)

    stopped.on_forward = on_forward
    with pytest.raises(OutOfTimeError):
        stopped.run()
    stopped.on_forward = lambda _: None
    stopped.run()
    assert stopped.last_checkpoint() == whole.last_checkpoint()


def test_only_losses_of_the_clips_that_are_read_now_are_shown(trial: Any) -> None:
    """Stopped, and started again with other clips held out."""
    older, newer = (replace(held_out(trial), content=content) for content in (4, 7))
    trial.validation = older

    def on_forward(done: int) -> None:
        if done == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    trial.on_forward = on_forward
    with pytest.raises(OutOfTimeError):
        trial.run()
    trial.on_forward, trial.validation = lambda _: None, newer
    rows = trial.run().history
    losses = {"val_loss_coarse", "val_loss_fine"}
    for validation, steps in ((older, [1]), (newer, [3, 5]), (None, [])):
        shown = of_these_clips(rows, validation)
        assert [row["step"] for row in shown if losses <= row.keys()] == steps
        assert not [row for row in shown if row["step"] not in steps and losses & row.keys()]
        assert not [row for row in shown if "val_read" in row]
        assert [row["loss"] for row in shown] == [row["loss"] for row in rows]


def test_it_shows_the_losses_of_the_model_as_it_is_used(trial: Any) -> None:
    """Means over clips, in batches of unequal sizes; without dropout, and nothing random drawn."""
    trial.dropout = 0.5
    trial.validation = validation = held_out(trial)
    trial.run()
    (*_, last) = history(trial.last_checkpoint())
    state, model = torch.get_rng_state(), trial.model
    found = measure(Losses(model, trial.params), validation, trial.params)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    with torch.no_grad():
        alone = batch_losses(model.eval(), validation.load(range(5)), trial.params)
    for name in ("loss_coarse", "loss_fine"):
        assert last[f"val_{name}"] == float(found[f"val_{name}"])
        assert last[f"val_{name}"] == pytest.approx(float(alone[name]), rel=1e-5)


@pytest.mark.parametrize("kind", COST)
@pytest.mark.parametrize("samples", [8, 64, 640, 5000, 100_000])
@pytest.mark.parametrize("clips", [1, 6, 1000])
def test_it_costs_a_bounded_share(trial: Any, kind: Any, samples: int, clips: int) -> None:
    params = trial.change(input=kind, max_samples=samples, validate_samples=64).params
    count, steps = schedule(params, clips)
    assert count <= min(64, clips)
    forwards = {"features": 3, "frames": 1}[kind] * params.steps * params.samples_per_step
    assert count * len(steps) <= 0.02 * forwards
    assert not steps or max(steps) == params.steps - 1
    assert len(steps) <= 20
    assert not steps or len(steps) >= min(5, params.steps)
    assert schedule(params.model_copy(update={"validate_samples": 0}), clips) == (0, frozenset())
    if samples == 100_000 and kind == "features":
        assert (count, len(steps)) == (min(64, clips), 20)
