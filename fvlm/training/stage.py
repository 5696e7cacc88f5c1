"""What the stages that train have in common: several trainings, their curves and figures.

A training that was done before, with the same code, data and parameters, is handed back.
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvlm.core.device import keep_freed_memory, peak_memory_gib, reserved_memory_gib
from fvlm.core.document import write_figures
from fvlm.core.io import write_csv, write_timings
from fvlm.core.kept import Claims, remade
from fvlm.core.stage import UNFINISHED
from fvlm.model.hub import CONFIG
from fvlm.training.data import Shards, Training
from fvlm.training.distributed import is_main, join_processes, wait_for_all
from fvlm.training.finished import FinishedTrainings
from fvlm.training.loop import OutOfTimeError, Row
from fvlm.training.optim import TrainParams
from fvlm.training.trainings import Trained, run_training
from fvlm.training.validation import PREFIX

VALIDATION_COLUMNS = ("step", "samples", "coarse_fine_ratio", "loss_coarse", "loss_fine")
TAIL = 0.1  # share of the steps, at the end, over which the reported losses are means
# Of the curves, what is no loss but told at the end as well.
TOLD = ("loss_", "gained_", "chosen_")


@dataclass(frozen=True)
class Results:
    """What a stage that trains writes: a folder of models, curves, metrics.

    validation: the curve on held-out clips, where some are read on the way.
    """

    models: Path
    curve: Path
    validation: Path | None
    metrics: Path


def train_all(
    stage: str,
    results: Results,
    shards: Shards,
    plan: Callable[[], Sequence[Training]],
    *,
    max_hours: float,
    counted: Callable[[], dict[str, int]] = dict,
) -> None:
    """Train, or go on training, and write each model when it is finished.

    plan: gives the trainings, of which the first one's curves are written; counted: what its
    metrics say besides. Out of time, or told to stop, the process exits with UNFINISHED: all state
    is saved.
    """
    keep_freed_memory()
    deadline = time.monotonic() + max_hours * 3600
    with join_processes() as device:
        trainings = plan()
        trained = _train(stage, results, shards, trainings, device, deadline)
        if not is_main():
            return
        history = trained[0].history
        write_csv(results.curve, [on_training_clips(row) for row in history])
        if results.validation:
            write_csv(results.validation, list(on_held_out_clips(history)), VALIDATION_COLUMNS)
        write_figures(results.metrics, summarize(history, trainings[0].params) | counted())
        write_timings(
            stage,
            samples_per_second=trained[0].rate,
            peak_memory_gib=peak_memory_gib(device),
            reserved_memory_gib=reserved_memory_gib(device),
        )
        remade(stage)


def _train(
    stage: str,
    results: Results,
    shards: Shards,
    trainings: Sequence[Training],
    device: torch.device,
    deadline: float,
) -> list[Trained]:
    finished = FinishedTrainings(stage, results.models)
    with Claims(finished.root) if is_main() else nullcontext() as claims:
        try:
            trained = [
                run_training(training, shards, finished, claims, device=device, deadline=deadline)
                for training in trainings
            ]
        except OutOfTimeError as stop:
            if is_main():
                print(f"unfinished: {stop}", file=sys.stderr)
            wait_for_all()  # torchrun kills the others as soon as one has ended with an error
            sys.exit(UNFINISHED)
        if claims is not None:
            names = {name for training in trained for name in (training.name, training.state)}
            _forget_models(results.models, keep=[training.folder for training in trainings])
            with claims.alone() as alone:
                if alone:
                    finished.forget_files(names)
    return trained


def folders_of(root: Path, seeds: Sequence[int]) -> dict[int, Path]:
    """Where the models of these seeds lie: that of the first one in `root`, others below it."""
    return {seed: root if seed == seeds[0] else root / f"seed-{seed}" for seed in seeds}


def _forget_models(root: Path, keep: list[Path]) -> None:
    """Delete what an earlier run with other seeds left."""
    for config in list(root.rglob(CONFIG)):
        if config.parent not in keep:
            shutil.rmtree(config.parent, ignore_errors=True)


def on_training_clips(row: Row) -> Row:
    """The row of the training's own curves."""
    return {name: value for name, value in row.items() if not name.startswith(PREFIX)}


def on_held_out_clips(history: list[Row]) -> Iterator[Row]:
    """A row for each time that held-out clips were read on the way."""
    for row in history:
        found = {name[len(PREFIX) :]: v for name, v in row.items() if name.startswith(PREFIX)}
        if found:
            ratio = {"coarse_fine_ratio": found["loss_coarse"] / found["loss_fine"]}
            yield {"step": row["step"], "samples": row["samples"], **ratio, **found}


def summarize(history: list[Row], params: TrainParams) -> dict[str, Any]:
    """Losses at the end of training, on training clips: no evidence, see metrics/evaluate.json."""
    last = history[-max(1, round(TAIL * len(history))) :]
    names = [name for name in last[0] if name.startswith(TOLD)]
    losses = {name: float(np.mean([row[name] for row in last])) for name in names}
    samples = len(history) * params.samples_per_step
    return {"steps": len(history), "samples": samples, **losses}
