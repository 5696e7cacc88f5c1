"""Train the foveated model on encoded clips.

Reads   data/encode/, params.yaml:model, params.yaml:train
Writes  models/foveated/, metrics/train.json, plots/train.csv

Out of time (train.max_hours) or stopped by SIGTERM it saves its state and exits with 75: DVC keeps
the stage unfinished, and the next `dvc repro` continues.
"""

import csv
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fvlm.compute import default_device, peak_memory_gib
from fvlm.errors import ParamsError
from fvlm.io import atomic_write, hash_json, read_json, state_folder, write_json
from fvlm.models.build import build_model, save_model
from fvlm.models.foveated import ModelParams
from fvlm.params import Params, load_params
from fvlm.seeding import torch_seed
from fvlm.shards.read import ShardReader, open_shards
from fvlm.tracking import Tracker, read_sent
from fvlm.training.checkpoint import Checkpoints
from fvlm.training.loop import OutOfTimeError, Row, train
from fvlm.training.objective import Batch
from fvlm.training.optim import TrainParams
from fvlm.training.order import random_frames, rows_at
from pipeline.stage import UnfinishedError, run

SHARDS, MODEL = Path("data/encode"), Path("models/foveated")
METRICS, CURVES = Path("metrics/train.json"), Path("plots/train.csv")
TAIL = 0.1  # share of the steps, at the end, over which the reported losses are means


class Sections(Params):
    """What this stage reads of params.yaml."""

    model: ModelParams
    train: TrainParams


def main() -> None:
    """Train, or go on training, and write the model with its loss curves."""
    sections = load_params(Sections)
    params = sections.train
    manifest, reader, device = (
        read_json(SHARDS / "manifest.json"),
        open_shards(SHARDS, split="train"),
        default_device(),
    )
    torch.manual_seed(torch_seed(params.seed, "weights"))
    model, config = build_model(sections.model, manifest)
    identity = {
        "model": sections.model.model_dump(),
        "train": params.model_dump(exclude={"max_hours", "checkpoint_samples"}),
        "data": hash_json(manifest),
        "weights": config["provenance"],
    }
    checkpoints = Checkpoints(state_folder() / "train", identity)
    spool = state_folder() / "mlflow" / checkpoints.folder.name
    rows: list[Row] = []

    def on_step(row: Row) -> None:
        rows.append(row)
        tracker.log(int(row["step"]), row)

    with Tracker(
        run_name=checkpoints.folder.name,
        run_id=read_sent(spool)["run_id"],
        params=sections.model_dump(),
        spool=spool,
    ) as tracker:
        started = time.monotonic()
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
            tracker.close(status="KILLED")
            raise UnfinishedError(str(stop)) from None
        rate = len(rows) * params.samples_per_step / (time.monotonic() - started)
    save_model(model, config, MODEL)
    write_curves(state.history)
    write_json(METRICS, summarize(state.history, params, rate, device))
    checkpoints.finish()


def load_batch(reader: ShardReader, positions: range, params: TrainParams) -> Batch:
    """The clips at these positions of the sample stream, each with its own random frames."""
    stored = reader.fields["tokens"].shape[0]
    if params.num_frames > stored:
        raise ParamsError(
            f"train.num_frames ({params.num_frames}) must be <= decode.num_frames ({stored})"
        )
    rows = rows_at(positions, clips=len(reader), seed=params.seed)
    frames = random_frames(positions, stored=stored, count=params.num_frames, seed=params.seed)
    arrays = reader.read(rows, fields=("tokens", "latents"), frames=frames)
    tokens, latents = (torch.from_numpy(arrays[name]) for name in ("tokens", "latents"))
    return Batch(tokens, latents, [reader.keys[row] for row in rows])


def write_curves(history: list[Row]) -> None:
    """One line a step, as `dvc plots` reads them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with atomic_write(CURVES) as file:
        file.write(text.getvalue().encode())


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
