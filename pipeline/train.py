"""Train the foveated model on encoded clips, once for every seed; with train.coarse_only also one
without fine passes for each.

Reads   data/encode/, data/decode/ (train.input: frames), params.yaml:model, params.yaml:train
Writes  models/foveated/ (the first seed's model, others in folders below), metrics/train.json and
        plots/train.csv (of the first seed)

Out of time (train.max_hours) or stopped by SIGTERM it saves its state and exits with 75: DVC keeps
the stage unfinished, and the next `dvc repro` continues. Started by torchrun, all its processes
share each training; torchrun itself then exits with 1, as for any code of theirs but 0.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvlm.clips.batch import Batch
from fvlm.clips.order import rows_at, trained_frames
from fvlm.clips.reader import COARSE_ONLY, BatchMemory, ClipReader, open_clips
from fvlm.core.device import keep_freed_memory, peak_memory_gib
from fvlm.core.io import hash_json, state_folder, write_csv, write_json
from fvlm.core.params import Params, load_params
from fvlm.core.seeding import torch_seed
from fvlm.core.stage import UNFINISHED, run
from fvlm.model.build import CONFIG, build_model, build_tokenizer, save_model
from fvlm.model.foveated import ModelParams
from fvlm.shards.manifest import read_manifest
from fvlm.tracking.tracker import Tracker, forget_sent, read_sent
from fvlm.training.checkpoint import Checkpoints, forget_finished
from fvlm.training.distributed import (
    check_same,
    is_main,
    join_processes,
    wait_for_all,
    whole,
)
from fvlm.training.loop import OutOfTimeError, Row, train
from fvlm.training.optim import TrainParams
from pipeline.paths import CURVES, ENCODED, FRAMES, MODEL, TRAIN_METRICS

# How a training is run, not what it computes: these may change between its parts.
NOT_IDENTITY = {
    "coarse_only",
    "max_hours",
    "checkpoint_samples",
    "parallel",
    "gradient_checkpointing",
}
CODE = 1  # raise when the same parameters train another model: kept states are then not continued
TAIL = 0.1  # share of the steps, at the end, over which the reported losses are means


class Sections(Params):
    """What this stage reads of params.yaml."""

    model: ModelParams
    train: TrainParams


@dataclass(frozen=True)
class Training:
    """One of the models to train: its parameters, with a single seed, and its folder."""

    params: TrainParams
    coarse_only: bool
    folder: Path

    @property
    def title(self) -> str:
        """How its progress is called."""
        return " ".join(["train", *self.folder.relative_to(MODEL).parts])


def list_trainings(params: TrainParams) -> list[Training]:
    """The model of the first seed, then its replicates; behind them those without fine passes."""
    roots = [MODEL, MODEL / COARSE_ONLY] if params.coarse_only else [MODEL]
    return [
        Training(
            params.model_copy(update={"seeds": [seed]}),
            coarse_only=root != MODEL,
            folder=root if seed == params.seed else root / f"seed-{seed}",
        )
        for root in roots
        for seed in params.seeds
    ]


def main() -> None:
    """Train, or go on training, and write each model when it is finished."""
    keep_freed_memory()
    with join_processes() as device:
        sections, started = load_params(Sections), time.monotonic()
        trainings = list_trainings(sections.train)
        states = [train_model(sections.model, training, device, started) for training in trainings]
        if is_main():
            forget_models([training.folder for training in trainings])
            forget_finished(states[0].parent, keep=states)
            forget_sent(spools(), keep={state.name for state in states})


def forget_models(keep: list[Path]) -> None:
    """Delete what an earlier run with other seeds left."""
    for config in list(MODEL.rglob(CONFIG)):
        if config.parent not in keep:
            shutil.rmtree(config.parent, ignore_errors=True)


def train_model(
    model_params: ModelParams, training: Training, device: torch.device, started: float
) -> Path:
    """Train one model in this process, or as one of several; the main one writes.

    started: when the stage began, for train.max_hours. Returns the folder of its checkpoints.
    """
    params, folder = training.params, training.folder
    manifest, tokenizer = read_manifest(ENCODED), build_tokenizer(model_params)
    reader = open_clips(
        ENCODED,
        FRAMES,
        split="train",
        input=params.input,
        tokenizer=tokenizer,
        # One batch is computed while the next is read.
        memory=BatchMemory(2, pinned=device.type == "cuda"),
    )
    reader.check_frames(params.num_frames, "train.num_frames")
    torch.manual_seed(torch_seed(params.seed, "weights"))
    model, config = build_model(
        model_params, manifest, input=params.input, coarse_only=training.coarse_only
    )
    if params.encoder_lr > 0:
        model.train_encoder(recompute=params.gradient_checkpointing)
    identity = {
        "code": CODE,
        "model": model_params.model_dump(),
        "coarse_only": training.coarse_only,
        "train": params.model_dump(exclude=NOT_IDENTITY),
        "data": hash_json(manifest),
        "weights": config["provenance"],
    }
    check_same("code, parameters, data or weights", hash_json(identity))
    checkpoints = Checkpoints(state_folder() / "train", identity)
    rows: list[Row] = []
    with checkpoints.locked(), tracking(checkpoints.folder.name, identity) as tracker:
        began = time.monotonic()

        def on_step(row: Row) -> None:
            rows.append(row)
            if tracker is not None:
                tracker.log(int(row["step"]), row)

        try:
            state = train(
                model,
                lambda positions: load_batch(reader, positions, params),
                params,
                deadline=started + params.max_hours * 3600,
                checkpoints=checkpoints,
                device=device,
                on_step=on_step,
                title=training.title,
            )
        except OutOfTimeError as stop:
            if tracker is not None:
                tracker.close(status="KILLED")
            if is_main():
                print(f"unfinished: {stop}", file=sys.stderr)
            wait_for_all()  # torchrun kills the others as soon as one has ended with an error
            sys.exit(UNFINISHED)
        rate = len(rows) * params.samples_per_step / (time.monotonic() - began) if rows else None
    weights = whole(model.state_dict())
    if is_main():
        facts = {"seed": params.seed, "lambda_coarse": params.lambda_coarse}
        save_model(weights, config | facts, folder, tokenizer)
        write_csv(CURVES if folder == MODEL else folder / CURVES.name, state.history)
        if folder == MODEL:
            write_json(TRAIN_METRICS, summarize(state.history, params, rate, device))
        checkpoints.finish()
    return checkpoints.folder


def spools() -> Path:
    """Below it each training has a folder of what goes to MLflow, named as that of its states."""
    return state_folder() / "mlflow"


@contextmanager
def tracking(name: str, params: dict[str, Any]) -> Iterator[Tracker | None]:
    """One MLflow run a training, also when it is resumed; only the main process has one."""
    if not is_main():
        yield None
        return
    spool = spools() / name
    with Tracker(
        run_name=name, run_id=read_sent(spool)["run_id"], params=params, spool=spool
    ) as tracker:
        yield tracker


def load_batch(reader: ClipReader, positions: range, params: TrainParams) -> Batch:
    """The clips at these positions of the sample stream, each with its own frames."""
    rows = rows_at(positions, clips=len(reader), seed=params.seed)
    frames = trained_frames(
        positions,
        stored=reader.stored,
        count=params.num_frames,
        seed=params.seed,
        choice=params.frames,
    )
    return reader.read(rows, frames)


def summarize(
    history: list[Row], params: TrainParams, rate: float | None, device: torch.device
) -> dict[str, Any]:
    """Losses at the end of training, on training clips: no evidence, see metrics/evaluate.json.

    `rate` is that of this run: after a resume it counts the steps since then, and without any there
    is none.
    """
    last = history[-max(1, round(TAIL * len(history))) :]
    names = [name for name in last[0] if name.startswith("loss_")]
    losses = {name: float(np.mean([row[name] for row in last])) for name in names}
    if fine := losses.get("loss_caption_fine"):  # 0 when none of these clips has a caption
        losses["caption_coarse_fine_ratio"] = losses["loss_caption_coarse"] / fine
    return {
        "steps": len(history),
        "samples": len(history) * params.samples_per_step,
        **losses,
        "samples_per_second": None if rate is None else round(rate, 2),
        "peak_memory_gib": round(peak_memory_gib(device), 2),
    }


if __name__ == "__main__":
    run(main)
