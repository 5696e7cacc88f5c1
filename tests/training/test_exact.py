"""Resumed equals uninterrupted, bit for bit: weights, moments, schedule, randomness, order, curves.

Every comparison is of the bytes of the last checkpoint, which hold all of these.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from fvlm.training.loop import OutOfTimeError

MakeTrial = Callable[[str], Any]  # Trial of conftest.py, which tests cannot import
LONG = {"max_samples": 64 * 6, "checkpoint_samples": 30}


def stop_at(trial: Any, forward: int) -> None:
    """Ask for a stop by SIGTERM when that many forwards of this run are done."""

    def on_forward(done: int) -> None:
        if done == forward:
            os.kill(os.getpid(), signal.SIGTERM)

    trial.on_forward = on_forward


def stop_and_resume(trial: Any, forward: int) -> dict[str, bytes]:
    """Stop at that forward, go on to the end; the last checkpoint."""
    step = forward // trial.params.gradient_accumulation_steps + 1
    steps = trial.params.steps
    stop_at(trial, forward)
    if step < steps:
        with pytest.raises(OutOfTimeError, match=f"after step {step} of {steps}; the state is sav"):
            trial.run()
    trial.on_forward = lambda _: None
    assert trial.run().step == steps
    return dict(trial.last_checkpoint())


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, bytes]]:
    """Last checkpoints of uninterrupted trainings."""
    return {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("forward", [0, 1, 3, 4, 7, 9, 11])
def test_stopped_in_any_forward(
    make_trial: MakeTrial, whole: dict[str, dict[str, bytes]], dtype: str, forward: int
) -> None:
    """Two forwards a step, the first and the second of them; 6 clips a step of 7 an epoch.

    Attention drops out weights at random, so that the random state matters.
    """
    uninterrupted, stopped = make_trial("whole"), make_trial("stopped")
    for trial in (uninterrupted, stopped):
        trial.change(dtype=dtype).dropout = 0.3
    if dtype not in whole:
        uninterrupted.run()
        whole[dtype] = uninterrupted.last_checkpoint()
    assert stop_and_resume(stopped, forward) == whole[dtype]


@pytest.mark.parametrize("forward", [1, 4, 9])
@pytest.mark.parametrize("kind", ["condition", "caption", "encoder", "noise"])
def test_stopped_with_captions_or_a_trained_encoder_or_noise(
    make_trial: MakeTrial, whole: dict[str, dict[str, bytes]], kind: str, forward: int
) -> None:
    uninterrupted, stopped = make_trial("whole"), make_trial("stopped")
    for trial in (uninterrupted, stopped):
        if kind == "encoder":
            trial.give_encoder()
        elif kind == "noise":
            trial.change(token_noise=0.5)
        else:
            trial.give_captions(kind)
    if kind not in whole:
        uninterrupted.run()
        whole[kind] = uninterrupted.last_checkpoint()
    assert stop_and_resume(stopped, forward) == whole[kind]


@pytest.mark.slow
def test_stopped_in_every_forward_of_64_steps(make_trial: MakeTrial) -> None:
    uninterrupted = make_trial("whole").change(**LONG)
    uninterrupted.run()
    expected = uninterrupted.last_checkpoint()
    for forward in range(2 * 64):
        assert stop_and_resume(make_trial(f"at {forward}").change(**LONG), forward) == expected


def test_ten_stops_in_one_run(make_trial: MakeTrial) -> None:
    uninterrupted, stopped = make_trial("whole"), make_trial("stopped")
    for trial in (uninterrupted, stopped):
        trial.change(max_samples=66)
    uninterrupted.run()
    for step in range(1, 11):
        stop_at(stopped, step % 2)
        with pytest.raises(OutOfTimeError, match=f"after step {step} of 11"):
            stopped.run()
    stopped.on_forward = lambda _: None
    assert stopped.run().history == uninterrupted.run().history
    assert stopped.last_checkpoint() == uninterrupted.last_checkpoint()


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_eight_steps_and_eight_more(make_trial: MakeTrial, schedule: str) -> None:
    """They equal 16, also stopped in both halves; of a cosine they are something else."""
    at_once, in_two = (make_trial(name).change(schedule=schedule) for name in ("one", "two"))
    for trial in (at_once, in_two):
        trial.any_length, trial.dropout = True, 0.3
    at_once.change(max_samples=96).run()
    for samples, forward, step in ((48, 5, 3), (96, 7, 12)):
        stop_at(in_two.change(max_samples=samples), forward)
        with pytest.raises(OutOfTimeError, match=f"after step {step} of {samples // 6}"):
            in_two.run()
        in_two.on_forward = lambda _: None
        in_two.run()
        in_two.checkpoints().finish(keep=True)
    found, expected = in_two.last_checkpoint(), at_once.last_checkpoint()
    same = {name: found[name] == expected[name] for name in expected}
    assert same == dict.fromkeys(expected, schedule == "constant")


def test_a_state_beyond_the_end_does_not_count(make_trial: MakeTrial) -> None:
    """Fewer steps than were trained: anew, from the last checkpoint that is not too far."""
    short, long = (make_trial(name).change(schedule="constant") for name in ("one", "two"))
    short.any_length = long.any_length = True
    short.change(max_samples=30, checkpoint_samples=6).run()
    long.change(max_samples=96, checkpoint_samples=6).run()
    assert long.checkpoints().reached() == [15, 16]
    first = len(long.seen)
    assert long.change(max_samples=90).run().step == 15
    assert len(long.seen) == first  # which was there
    assert long.change(max_samples=30).run().step == 5
    assert len(long.seen) > first
    assert long.last_checkpoint() == short.last_checkpoint()


def test_out_of_time_stops_after_a_step_and_continues(make_trial: MakeTrial) -> None:
    uninterrupted, stopped = make_trial("whole"), make_trial("stopped").change(max_hours=1e-9)
    uninterrupted.run()
    for step in range(1, 6):
        with pytest.raises(OutOfTimeError, match=f"after step {step} of 6"):
            stopped.run()
    assert stopped.run().step == 6
    assert stopped.last_checkpoint() == uninterrupted.last_checkpoint()


def autograd_can_be_forked() -> bool:
    """Not once a test in this process has started autograd's own threads."""
    loss = torch.ones(1, requires_grad=True).sum()
    process = get_context("fork").Process(target=loss.backward)
    process.start()
    process.join()
    return process.exitcode == 0


def test_ten_kills_at_any_moment(make_trial: MakeTrial) -> None:
    """SIGKILL, also in the midst of writing a checkpoint: each of 64 steps writes one."""
    if not autograd_can_be_forked():
        this = f"{__file__}::test_ten_kills_at_any_moment"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", this]
        assert subprocess.run([*command, "-n", "0"], check=False).returncode == 0
        return
    changes = {**LONG, "checkpoint_samples": 6}
    uninterrupted, killed = make_trial("whole").change(**changes), make_trial("k").change(**changes)
    uninterrupted.run()
    moments = random.Random(0)

    def newest() -> Path | None:
        return max(killed.checkpoints().folder.glob("step-*"), default=None)

    reached = [newest()]
    for number in range(10):
        process = get_context("fork").Process(target=killed.run)
        process.start()
        if number % 2 == 0:  # on a slow machine, too, half of the kills come after new steps
            while process.is_alive() and newest() == reached[-1]:
                time.sleep(0.002)
        process.join(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        reached.append(newest())
    assert len(set(reached)) > 2
    assert killed.run().step == 64
    assert killed.last_checkpoint() == uninterrupted.last_checkpoint()
