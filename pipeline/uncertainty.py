"""Score how uncertain a vision tower is about the decoded frames: Monte-Carlo dropout.

Its own pipeline file: `dvc repro uncertainty/dvc.yaml`.

Reads   data/decode/, params.yaml:uncertainty
Writes  metrics/uncertainty.json, plots/uncertainty.csv (frames), plots/uncertainty_icc.csv,
        plots/uncertainty_icc.png, plots/uncertainty_frames.png
"""

import dataclasses
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fvlm.core.device import default_device, peak_memory_gib
from fvlm.core.document import write_figures
from fvlm.core.errors import ParamsError
from fvlm.core.identity import made_by
from fvlm.core.io import hash_json, state_folder, write_csv, write_timings
from fvlm.core.params import Params, load_params
from fvlm.core.seeding import unit_hash
from fvlm.core.stage import run
from fvlm.shards.manifest import FrameManifest, read_manifest
from fvlm.shards.read import open_shards
from fvlm.uncertainty.moments import VARIANTS
from fvlm.uncertainty.plots import plot_icc, plot_sheet
from fvlm.uncertainty.sampling import Sampler, UncertaintyParams, score_frames
from fvlm.uncertainty.sites import match_sites
from fvlm.uncertainty.summary import FrameName, Summary, summarize
from fvlm.uncertainty.tower import load_tower
from fvlm.uncertainty.validity import blur, downsample
from fvlm.weights.sources import Provenance
from pipeline.paths import (
    FRAMES,
    UNCERTAINTY,
    UNCERTAINTY_BY_PASSES,
    UNCERTAINTY_METRICS,
    UNCERTAINTY_PLOT,
    UNCERTAINTY_SHEET,
)

STATES = "uncertainty"  # scores of unfinished runs, below .state/
WEEK = 7 * 24 * 3600.0
# Rounding changed scores of tiny towers by 5% around here, and by more below.
WEAK = 4 * torch.finfo(torch.bfloat16).eps ** 2


class Sections(Params):
    """What this stage reads of params.yaml."""

    uncertainty: UncertaintyParams


def main() -> None:
    """Score frames, clean and changed, and write figures, tables and pictures."""
    params, device = load_params(Sections).uncertainty, default_device()
    started = time.monotonic()
    made_by(score_frames)  # read now: an edit while weights load is not this code
    frames, names = load_frames(params)
    tower, source = load_tower(params.model)
    sampler = Sampler(tower, match_sites(params.sites, tower.sites), params, device)
    samples = [name.sample for name in names]
    changes = {
        "blur": partial(blur, sigma=params.blur_sigma),
        "downsample": partial(downsample, factor=params.downsample),
    }
    with torch.inference_mode():  # faults show before the long work
        first = torch.from_numpy(frames[:1]).to(device)
        for pixels in (first, *(change(first) for change in changes.values())):
            width = tower.check(pixels).shape[-1]
    kept = state_files(sampler, source, samples, changes)
    score = partial(score_frames, sampler, frames, samples)
    scores = score(trials=params.trials, title="uncertainty", state=kept["clean"])
    changed = {
        kind: score(trials=1, title=kind, state=kept[kind], change=change)
        for kind, change in changes.items()
    }
    warn_of_rounding(scores, width, params)
    summary = summarize(scores, changed, names, params)
    about = {"model": params.model, "revision": source.revision}
    write_figures(UNCERTAINTY_METRICS, about | summary.metrics)
    write_timings(
        "uncertainty",
        seconds=time.monotonic() - started,
        peak_memory_gib=peak_memory_gib(device),
    )
    write_csv(UNCERTAINTY, summary.frames)
    write_csv(UNCERTAINTY_BY_PASSES, summary.by_passes)
    draw(summary, frames, names, scores)
    forget(kept.values(), state_folder() / STATES)
    for variant in VARIANTS:
        figures = {name: summary.metrics[f"{variant}_{name}"] for name in ("icc", "snr", "verdict")}
        print(f"{variant}: {figures}")


def state_files(
    sampler: Sampler, source: Provenance, samples: list[str], changes: dict[str, partial[Tensor]]
) -> dict[str, Path]:
    """Where scores of clean and of changed frames are kept, each named after all that decides them.

    How many passes share a forward is not part of it.
    """
    deciding = {"p", "seed", "passes", "snapshots", "trials", "dtype"}
    common = sampler.params.model_dump(include=deciding) | dataclasses.asdict(source)
    common |= {"made_by": made_by(score_frames), "device": sampler.device.type, "samples": samples}
    common |= {"tower": sampler.tower.identity, "sites": sampler.sites}
    common["frames"] = [shard.sha256 for shard in read_manifest(FRAMES, FrameManifest).shards]
    own: dict[str, Any] = {kind: {kind: change.keywords} for kind, change in changes.items()}
    folder = state_folder() / STATES
    return {
        kind: folder / f"{hash_json(common | keywords)[:16]}.safetensors"
        for kind, keywords in ({"clean": {}} | own).items()
    }


def warn_of_rounding(scores: NDArray[np.float64], width: int, params: UncertaintyParams) -> None:
    """Say so when scores are so small that what bfloat16 rounds off is a part of them."""
    relative = width * float(np.median(scores[VARIANTS.index("post"), -1]))
    if params.dtype == "bfloat16" and relative < WEAK:
        print(
            f"warning: scores are {relative:.1g} of the embedding's square, so small that rounding "
            "to bfloat16 is a part of them; set uncertainty.dtype: float32",
            file=sys.stderr,
        )


def forget(kept: Collection[Path], folder: Path) -> None:
    """Delete these files of `folder`, and those that no run went on with for a week.

    Not all of the others: an experiment with other parameters may be running beside this one.
    """
    for path in folder.glob("*.safetensors"):
        with suppress(FileNotFoundError):  # the other experiment's end
            if path in kept or time.time() - path.stat().st_mtime > WEEK:
                path.unlink()


def load_frames(params: UncertaintyParams) -> tuple[NDArray[np.uint8], list[FrameName]]:
    """Frames uint8 [N,3,S,S] and their names: some clips, some evenly spaced frames of each.

    Which clips are taken depends on the clips alone, so that one more video changes one clip.
    """
    manifest = read_manifest(FRAMES, FrameManifest)
    splits = dict.fromkeys(shard.split for shard in manifest.shards)
    readers = [open_shards(FRAMES, split=split) for split in splits]
    known = [(key, reader, row) for reader in readers for row, key in enumerate(reader.keys)]
    if not known:
        raise ParamsError(f"{FRAMES} holds no clips; every video was filtered out or quarantined")
    known = sorted(known, key=lambda clip: unit_hash(clip[0], "uncertainty"))[: params.max_clips]
    stored = known[0][1].fields["frames"].shape[0]
    if params.frames_per_clip > stored:
        raise ParamsError(
            f"uncertainty.frames_per_clip ({params.frames_per_clip}) must be <= "
            f"decode.num_frames ({stored})"
        )
    # The middles of equal parts: the first and last frame of a clip are often black.
    parts = 2 * params.frames_per_clip
    numbers = [stored * middle // parts for middle in range(1, parts, 2)]
    frames = [
        reader.read([row], ["frames"], frames=numbers)["frames"][0] for _, reader, row in known
    ]
    videos = [(key, reader.metadata(row)["video_id"]) for key, reader, row in known]
    names = [FrameName(key, video, number) for key, video in videos for number in numbers]
    for reader in readers:
        reader.close()
    if len(names) < 2:
        raise ParamsError(
            "uncertainty.max_clips, uncertainty.frames_per_clip: at least 2 frames are needed, "
            f"got {len(names)}"
        )
    return np.concatenate(frames), names


def draw(
    summary: Summary,
    frames: NDArray[np.uint8],
    names: list[FrameName],
    scores: NDArray[np.float64],
) -> None:
    """The two pictures."""
    count = f"{summary.metrics['frames']} frames of {summary.metrics['clips']} clips"
    trials = f"{summary.metrics['trials']} trials"
    title = f"Reliability of one trial's scores  ({count}, {trials})"
    plot_icc(summary.by_passes, summary.t_half, UNCERTAINTY_PLOT, title=title)
    means = scores[VARIANTS.index("post"), -1].mean(axis=0)
    title = f"Uncertainty of the normalised embedding / its median over {count}"
    labels = [f"{Path(name.video_id).stem} #{name.number}" for name in names]
    plot_sheet(frames, means, labels, UNCERTAINTY_SHEET, title=title)


if __name__ == "__main__":
    run(main, batch_key="uncertainty.batch_size")
