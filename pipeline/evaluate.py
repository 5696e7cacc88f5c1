"""Evaluate the trained models and their controls on the held-out clips.

Reads   models/foveated/, data/encode/, data/decode/ (a model that takes frames), data/text/ (one
        with text), params.yaml:evaluate
Writes  data/evaluation.json (every figure in full), metrics/evaluate.json (rounded),
        plots/evaluate.csv (clips), plots/evaluate_frames.csv, plots/evaluate_motion.csv,
        plots/ratio_by_frame.png, plots/ratio_by_motion.png, plots/controls.png
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fvlm.clips.batch import Batch
from fvlm.clips.latents import training_latents
from fvlm.clips.order import evaluated_frames, even_frames
from fvlm.clips.reader import ClipReader, open_clips, rows_of_new_footage
from fvlm.core.device import arithmetic, default_device, keep_freed_memory
from fvlm.core.document import write_document, write_figures, write_table
from fvlm.core.errors import FvlmError
from fvlm.core.params import Params, load_params
from fvlm.core.stage import run
from fvlm.evaluation.attention import attention_figures
from fvlm.evaluation.baselines import Baselines, fit_baselines
from fvlm.evaluation.figures import (
    controls_height,
    counted,
    draw_controls,
    draw_frames,
    draw_motion,
    write_chart,
)
from fvlm.evaluation.losses import EvaluateParams, LoadClips, coarse_losses, evaluate_clips
from fvlm.model.foveated import FoveatedModel
from fvlm.model.saved import load_caption_tokenizer, load_model, read_config
from fvlm.statistics.arms import ClipName, Losses
from fvlm.statistics.evaluation import Evaluation
from fvlm.statistics.summary import About, Summary, clip_rows, on_training_clips, summarize
from fvlm.statistics.tables import charted, ratio_rows
from fvlm.statistics.verdict import decide, headline
from pipeline.paths import (
    BY_CLIP,
    BY_FRAME,
    BY_FRAME_PLOT,
    BY_MOTION,
    BY_MOTION_PLOT,
    CAPTIONS,
    COARSE_ONLY,
    CONTROLS_PLOT,
    ENCODED,
    EVALUATE_METRICS,
    EVALUATION,
    FRAMES,
    MODEL,
    POOLED,
)


class Sections(Params):
    """What this stage reads of params.yaml."""

    evaluate: EvaluateParams


def main() -> None:
    """Measure every arm on the same clips and write figures, tables and pictures."""
    keep_freed_memory()
    params, device = load_params(Sections).evaluate, default_device()
    model = load_model(MODEL).to(device)
    clips = {split: open_split(model, split, params) for split in ("train", "val")}
    new, left_out = without_seen_footage(clips["val"], clips["train"])
    held_out, load = read_from(clips["val"], new, params, at_most=params.max_clips or len(new))
    # As many training clips: a ratio there without one on held-out clips is memory, no result.
    every = range(len(clips["train"]))
    seen, load_seen = read_from(clips["train"], every, params, at_most=len(held_out))
    baselines = fit_baselines(training_latents(ENCODED, params.num_frames))
    losses, known = dict[int, Losses](), dict[int, Losses]()
    for folder in trained_folders(MODEL):
        seed = read_config(folder).seed
        losses[seed] = measure(folder, held_out, load, params, baselines, device)
        known[seed] = measure(folder, seen, load_seen, params, baselines, device)
    samples, seed = params.bootstrap_samples, params.seed
    about = About(
        coarse_trained=read_config(MODEL).lambda_coarse > 0,
        vocabulary=int(model.language.config.vocab_size),
    )
    summary = summarize(losses, held_out, samples=samples, seed=seed, about=about)
    found, size = summary.held_out, params.batch_size
    evaluation = Evaluation(
        verdict=decide(found),
        statement=headline(found),
        held_out=found,
        footage_left_out=left_out,
        on_training_clips=on_training_clips(known, seen, samples=samples, seed=seed),
        attention=attention_figures(model, load, len(held_out), batch_size=size, device=device),
        weights=weights_of(MODEL),
        arithmetic=arithmetic(device, "float32"),
    )
    write_document(EVALUATION, evaluation)
    write_figures(EVALUATE_METRICS, evaluation)
    write_table(BY_CLIP, clip_rows(losses, held_out))
    write_table(BY_FRAME, summary.frames)
    write_table(BY_MOTION, summary.motion)
    write_charts(evaluation, summary)


def write_charts(evaluation: Evaluation, summary: Summary) -> None:
    """The pictures among the plots; each says of how many videos it is."""
    found = evaluation.held_out
    count = counted(found.videos, "video")
    videos = f"{count}; above 1: the fine pass is better"
    frames = partial(draw_frames, rows=summary.frames)
    motion = partial(draw_motion, rows=summary.motion)
    write_chart(BY_FRAME_PLOT, frames, title=f"Ratio by frame  ({videos})")
    write_chart(BY_MOTION_PLOT, motion, title=f"Ratio by motion, frames 3 and later  ({videos})")
    rows = charted(ratio_rows(evaluation))
    write_chart(
        CONTROLS_PLOT,
        partial(draw_controls, rows=rows),
        title=f"Does the fine pass beat it?  {count}: {evaluation.verdict}",
        height=controls_height(rows),
    )


def weights_of(folder: Path) -> str:
    """Which weights the figures are of: the first digits of their sha256."""
    return read_config(folder).weights_sha256[:12]


def trained_folders(root: Path) -> list[Path]:
    """The model of the first seed and those of the others."""
    return [root, *sorted(root.glob("seed-*"))]


def measure(
    folder: Path,
    clips: list[ClipName],
    load: LoadClips,
    params: EvaluateParams,
    baselines: Baselines,
    device: torch.device,
) -> Losses:
    """Losses of one trained model, and of its baselines where these were trained.

    These have a coarse pass only: without fine passes, or with pooled tokens and no query.
    """
    model, size = load_model(folder).to(device), params.batch_size
    losses = evaluate_clips(
        model,
        load,
        clips,
        batch_size=size,
        seed=params.seed,
        device=device,
        baselines=baselines,
    )
    roots = {"coarse_only": COARSE_ONLY}
    roots |= {f"pooled_{root.name}": root for root in POOLED.glob("*")}
    for arm, root in roots.items():
        twin = root / folder.relative_to(MODEL)
        if twin.exists():
            alone, count = load_model(twin).to(device), len(clips)
            losses[arm] = coarse_losses(alone, load, count, batch_size=size, device=device)
    return losses


def open_split(model: FoveatedModel, split: str, params: EvaluateParams) -> ClipReader:
    """All clips of a split, as the model takes them."""
    tokenizer = load_caption_tokenizer(MODEL)
    reader = open_clips(
        ENCODED,
        FRAMES,
        split=split,
        input=model.input,
        tokenizer=tokenizer,
        captions=CAPTIONS,
    )
    reader.check_frames(params.num_frames, "evaluate.num_frames")
    return reader


def without_seen_footage(held_out: ClipReader, trained: ClipReader) -> tuple[list[int], int]:
    """Rows of the held-out clips whose footage was not trained on, and how many were."""
    rows = rows_of_new_footage(held_out, trained)
    left_out = len(held_out) - len(rows)
    if not rows:
        raise FvlmError(
            f"the footage of all {left_out} held-out clips is in the training clips too, perhaps "
            "in another codec: give the videos of one film one collect.group"
        )
    if left_out:
        print(f"evaluate: left out {left_out} held-out clips: their footage was trained on")
    return rows, left_out


def read_from(
    reader: ClipReader, rows: Sequence[int], params: EvaluateParams, *, at_most: int
) -> tuple[list[ClipName], LoadClips]:
    """The clips of these rows, or `at_most` of them, evenly chosen, and what loads a range."""
    frames = evaluated_frames(stored=reader.stored, count=params.num_frames)
    places = even_frames(stored=len(rows), count=min(at_most, len(rows)))
    chosen = np.asarray(rows)[places]

    def load(wanted: range) -> Batch:
        return reader.read(chosen[wanted.start : wanted.stop], frames)

    facts = [reader.metadata(row) for row in chosen]
    keys = (reader.keys[row] for row in chosen)
    names = [
        ClipName(key, fact["video_id"], fact.get("group", ""), fact.get("start"))
        for key, fact in zip(keys, facts, strict=True)
    ]
    return names, load


if __name__ == "__main__":
    run(main, batch_key="evaluate.batch_size")
