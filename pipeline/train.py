"""Train the foveated model on encoded clips.

Reads   data/encode/, data/decode/ (train.input: frames), params.yaml:model, params.yaml:train
Writes  models/foveated/, metrics/train.json, plots/train.csv

Out of time (train.max_hours) or stopped by SIGTERM it saves its state and exits with 75: DVC keeps
the stage unfinished, and the next `dvc repro` continues. Started by torchrun, all its processes
share the one training.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvlm.compute import peak_memory_gib
from fvlm.io import hash_json, state_folder, write_csv, write_json
from fvlm.models.batch import Batch
from fvlm.models.build import build_model, build_tokenizer, save_model
from fvlm.models.foveated import ModelParams
from fvlm.params import Params, load_params
from fvlm.seeding import torch_seed
from fvlm.shards.manifest import read_manifest
from fvlm.tracking import Tracker, read_sent
from fvlm.training.checkpoint import Checkpoints
from fvlm.training.distributed import check_same, is_main, join_processes, whole
from fvlm.training.loop import OutOfTimeError, Row, train
from fvlm.training.optim import TrainParams
from fvlm.training.order import random_frames, rows_at
from pipeline.clips import ClipReader, open_clips
from pipeline.stage import UnfinishedError, run

SHARDS, DECODED, MODEL = Path("data/encode"), Path("data/decode"), Path("models/foveated")
METRICS, CURVES = Path("metrics/train.json"), Path("plots/train.csv")
# How a training is run, not what it computes: these may change between its parts.
NOT_IDENTITY = {"max_hours", "checkpoint_samples", "parallel", "recompute_encoder"}
TAIL = 0.1  # share of the steps, at the end, over which the reported losses are means


class Sections(Params):
    """What this stage reads of params.yaml."""

    model: ModelParams
    train: TrainParams


def main() -> None:
    """Train, or go on training, and write the model with its loss curves."""
    with join_processes() as device:
        train_model(load_params(Sections), device)


def train_model(sections: Sections, device: torch.device) -> None:
    """Train in this process, or as one of several; the main one writes."""
    params = sections.train
    manifest, tokenizer = read_manifest(SHARDS), build_tokenizer(sections.model)
    reader = open_clips(SHARDS, DECODED, split="train", input=params.input, tokenizer=tokenizer)
    reader.check_frames(params.num_frames, "train.num_frames")
    torch.manual_seed(torch_seed(params.seed, "weights"))
    model, config = build_model(sections.model, manifest, input=params.input)
    if params.encoder_lr > 0:
        model.train_encoder(recompute=params.recompute_encoder)
    identity = {
        "model": sections.model.model_dump(),
        "train": params.model_dump(exclude=NOT_IDENTITY),
        "data": hash_json(manifest),
        "weights": config["provenance"],
    }
    check_same("parameters, data or weights", hash_json(identity))
    checkpoints = Checkpoints(state_folder() / "train", identity)
    rows: list[Row] = []
    with tracking(checkpoints.folder.name, sections) as tracker:
        started = time.monotonic()

        def on_step(row: Row) -> None:
            rows.append(row)
            if tracker is not None:
                tracker.log(int(row["step"]), row)

        try:
            state = train(
                model,
                lambda positions: load_batch(reader, positions, params),
                params,
                checkpoints=checkpoints,
                device=device,
                on_step=on_step,
            )
        except OutOfTimeError as stop:
            if tracker is not None:
                tracker.close(status="KILLED")
            raise UnfinishedError(str(stop)) from None
        rate = len(rows) * params.samples_per_step / (time.monotonic() - started)
    weights = whole(model.state_dict())
    if is_main():
        save_model(weights, config, MODEL, tokenizer)
        write_csv(CURVES, state.history)
        write_json(METRICS, summarize(state.history, params, rate, device))
        checkpoints.finish()


@contextmanager
def tracking(name: str, sections: Sections) -> Iterator[Tracker | None]:
    """One MLflow run a training, also when it is resumed; only the main process has one."""
    if not is_main():
        yield None
        return
    spool = state_folder() / "mlflow" / name
    with Tracker(
        run_name=name, run_id=read_sent(spool)["run_id"], params=sections.model_dump(), spool=spool
    ) as tracker:
        yield tracker


def load_batch(reader: ClipReader, positions: range, params: TrainParams) -> Batch:
    """The clips at these positions of the sample stream, each with its own random frames."""
    rows = rows_at(positions, clips=len(reader), seed=params.seed)
    frames = random_frames(
        positions, stored=reader.stored, count=params.num_frames, seed=params.seed
    )
    return reader.read(rows, frames)


def summarize(
    history: list[Row], params: TrainParams, rate: float, device: torch.device
) -> dict[str, Any]:
    """Losses at the end of training, on training clips: no evidence, see metrics/evaluate.json.

    `rate` is that of this run: after a resume it counts the steps since then.
    """
    last = history[-max(1, round(TAIL * len(history))) :]
    coarse, fine = (float(np.mean([row[f"loss_{name}"] for row in last])) for name in _PASSES)
    return {
        "steps": len(history),
        "samples": len(history) * params.samples_per_step,
        "loss_coarse": coarse,
        "loss_fine": fine,
        "samples_per_second": round(rate, 2),
        "peak_memory_gib": round(peak_memory_gib(device), 2),
    }


_PASSES = ("coarse", "fine")

if __name__ == "__main__":
    run(main)
