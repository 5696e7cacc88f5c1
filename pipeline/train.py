"""Train the foveated model on encoded clips, once for every seed; with train.coarse_only also one
without fine passes for each, and for each number of train.pooled_tokens one with so many tokens a
frame and no query.

Reads   data/encode/, data/decode/ (its frame size; with train.input: frames all of it), data/text/
        (model.text), params.yaml:model, params.yaml:train
Writes  models/foveated/ (the first seed's model, others in folders below), metrics/train.json,
        plots/train.csv and plots/validation.csv (of the first seed)

A training that was done before, with the same code, data and parameters, is handed back:
`fvlm forget train` has it done anew. With train.schedule: constant a larger train.max_samples goes
on where the training ended.

Out of time (train.max_hours) or stopped by SIGTERM or Ctrl-C it saves its state and exits with 75:
DVC keeps the stage unfinished, and the next `dvc repro` continues. Started by torchrun, all its
processes share each training; torchrun itself then exits with 1, as for any code of theirs but 0.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from fvlm.core.device import keep_freed_memory, peak_memory_gib, reserved_memory_gib
from fvlm.core.document import write_figures
from fvlm.core.io import write_csv, write_timings
from fvlm.core.kept import Claims, remade
from fvlm.core.params import Params, check_recorded, load_params
from fvlm.core.stage import UNFINISHED, run
from fvlm.model.foveated import ModelParams
from fvlm.model.hub import CONFIG
from fvlm.shards.manifest import EncodedManifest, read_manifest
from fvlm.training.distributed import is_main, join_processes, wait_for_all
from fvlm.training.finished import FinishedTrainings
from fvlm.training.loop import OutOfTimeError, Row
from fvlm.training.optim import TrainParams
from fvlm.training.trainings import Shards, Training, run_training
from fvlm.training.validation import PREFIX
from pipeline.paths import (
    CAPTIONS,
    COARSE_ONLY,
    CURVES,
    ENCODED,
    FRAMES,
    MODEL,
    POOLED,
    TRAIN_METRICS,
    VALIDATION,
)

# Of the shards that are trained on.
RECORDED = tuple(
    f"encode.{key}" for key in ("batch_frames", "compile", "dino_layers", "dtype", "layer")
)
VALIDATION_COLUMNS = ("step", "samples", "coarse_fine_ratio", "loss_coarse", "loss_fine")
TAIL = 0.1  # share of the steps, at the end, over which the reported losses are means


class Sections(Params):
    """What this stage reads of params.yaml."""

    model: ModelParams
    train: TrainParams


def main() -> None:
    """Train, or go on training, and write each model when it is finished."""
    keep_freed_memory()
    started = time.monotonic()
    with join_processes() as device:
        sections = load_params(Sections)
        encoded = read_manifest(ENCODED, EncodedManifest)
        check_recorded(RECORDED, encoded.recipe, ENCODED, stage="encode")
        trainings = list_trainings(sections)
        finished = FinishedTrainings(MODEL)
        with Claims(finished.root) if is_main() else nullcontext() as claims:
            deadline = started + sections.train.max_hours * 3600
            try:
                trained = [
                    run_training(
                        training,
                        Shards(ENCODED, FRAMES, CAPTIONS),
                        finished,
                        claims,
                        device=device,
                        deadline=deadline,
                    )
                    for training in trainings
                ]
            except OutOfTimeError as stop:
                if is_main():
                    print(f"unfinished: {stop}", file=sys.stderr)
                wait_for_all()  # torchrun kills the others as soon as one has ended with an error
                sys.exit(UNFINISHED)
            if claims is None:
                return
            names = {name for training in trained for name in (training.name, training.state)}
            forget_models([training.folder for training in trainings])
            with claims.alone() as alone:
                if alone:
                    finished.forget_files(names)
        history = trained[0].history
        write_csv(CURVES, [on_training_clips(row) for row in history])
        write_csv(VALIDATION, list(on_held_out_clips(history)), VALIDATION_COLUMNS)
        write_figures(TRAIN_METRICS, summarize(history, sections.train))
        write_timings(
            "train",
            samples_per_second=trained[0].rate,
            peak_memory_gib=peak_memory_gib(device),
            reserved_memory_gib=reserved_memory_gib(device),
        )
        remade("train")


def list_trainings(sections: Sections) -> list[Training]:
    """The model of the first seed, then its replicates; behind them the baselines of each."""
    params = sections.train
    roots = {MODEL: 0} | ({COARSE_ONLY: 0} if params.coarse_only else {})
    roots |= {POOLED / str(count): count for count in params.pooled_tokens}
    folders = {
        (root, seed): root if seed == params.seed else root / f"seed-{seed}"
        for root in roots
        for seed in params.seeds
    }
    return [
        Training(
            sections.model,
            params.model_copy(update={"seeds": [seed]}),
            coarse_only=root == COARSE_ONLY,
            pooled_tokens=roots[root],
            folder=folder,
            title=" ".join(["train", *folder.relative_to(MODEL).parts]),
        )
        for (root, seed), folder in folders.items()
    ]


def forget_models(keep: list[Path]) -> None:
    """Delete what an earlier run with other seeds left."""
    for config in list(MODEL.rglob(CONFIG)):
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
    names = [name for name in last[0] if name.startswith("loss_")]
    losses = {name: float(np.mean([row[name] for row in last])) for name in names}
    samples = len(history) * params.samples_per_step
    return {"steps": len(history), "samples": samples, **losses}


if __name__ == "__main__":
    run(main, batch_key="train.batch_size")
