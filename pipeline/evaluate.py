"""Evaluate the trained model and its controls on the held-out clips.

Reads   models/foveated/, data/encode/, params.yaml:evaluate
Writes  metrics/evaluate.json, plots/evaluate.csv (clips), plots/evaluate_frames.csv,
        plots/evaluate_motion.csv, plots/ratio_by_frame.png, plots/ratio_by_motion.png,
        plots/controls.png
"""

import csv
import io
from pathlib import Path

import torch
from torch import Tensor

from fvlm.compute import default_device
from fvlm.errors import ParamsError
from fvlm.evaluation.controls import ClipName, EvaluateParams, evaluate_clips
from fvlm.evaluation.plots import plot_arms, plot_ratio_by_frame, plot_ratio_by_motion
from fvlm.evaluation.summary import Row, summarize
from fvlm.io import atomic_write, write_json
from fvlm.models.build import load_model
from fvlm.params import Params, load_params
from fvlm.shards.read import ShardReader, open_shards
from fvlm.training.order import even_frames
from pipeline.stage import run

MODEL, SHARDS = Path("models/foveated"), Path("data/encode")
METRICS, CLIPS = Path("metrics/evaluate.json"), Path("plots/evaluate.csv")
FRAMES, MOTION = Path("plots/evaluate_frames.csv"), Path("plots/evaluate_motion.csv")
BY_FRAME, BY_MOTION = Path("plots/ratio_by_frame.png"), Path("plots/ratio_by_motion.png")
CONTROLS = Path("plots/controls.png")


class Sections(Params):
    """What this stage reads of params.yaml."""

    evaluate: EvaluateParams


def main() -> None:
    """Measure every arm on the same clips and write figures, tables and pictures."""
    params, device = load_params(Sections).evaluate, default_device()
    reader = open_shards(SHARDS, split="val")
    clips = [ClipName(key, reader.metadata(row)["video_id"]) for row, key in enumerate(reader.keys)]
    losses = evaluate_clips(
        load_model(MODEL).to(device),
        lambda rows: load_clips(reader, rows, params),
        clips,
        batch_size=params.batch_size,
        seed=params.seed,
        device=device,
    )
    summary = summarize(losses, clips, samples=params.bootstrap_samples, seed=params.seed)
    write_json(METRICS, summary.metrics)
    for path, rows in ((CLIPS, summary.clips), (FRAMES, summary.frames), (MOTION, summary.motion)):
        write_csv(path, rows)
    plot_ratio_by_frame(summary, BY_FRAME)
    plot_ratio_by_motion(summary, BY_MOTION)
    plot_arms(summary, CONTROLS)


def load_clips(reader: ShardReader, rows: range, params: EvaluateParams) -> tuple[Tensor, Tensor]:
    """Tokens [B,T,N,D] and latents [B,T,C,h,w] of these clips, evenly spaced frames."""
    stored = reader.fields["tokens"].shape[0]
    if params.num_frames > stored:
        raise ParamsError(
            f"evaluate.num_frames ({params.num_frames}) must be <= decode.num_frames ({stored})"
        )
    frames = even_frames(stored=stored, count=params.num_frames)
    arrays = reader.read(rows, fields=("tokens", "latents"), frames=frames)
    return torch.from_numpy(arrays["tokens"]), torch.from_numpy(arrays["latents"])


def write_csv(path: Path, rows: list[Row]) -> None:
    """A header and one line a row; undefined values stay empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        # File names need not be UTF-8: what could not be decoded goes out as the bytes it was.
        file.write(text.getvalue().encode(errors="surrogateescape"))


if __name__ == "__main__":
    run(main)
