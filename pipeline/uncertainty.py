"""Score how uncertain a vision tower is about the decoded frames: Monte-Carlo dropout.

Its own pipeline file: `dvc repro uncertainty/dvc.yaml`.

Reads   data/decode/, params.yaml:uncertainty
Writes  metrics/uncertainty.json, plots/uncertainty.csv (frames), plots/uncertainty_icc.csv,
        plots/uncertainty_icc.png, plots/uncertainty_frames.png
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fvlm.compute import default_device, peak_memory_gib
from fvlm.errors import ParamsError
from fvlm.io import hash_json, state_folder, write_csv, write_json
from fvlm.params import Params, load_params
from fvlm.seeding import unit_hash
from fvlm.shards.manifest import read_manifest
from fvlm.shards.read import open_shards
from fvlm.uncertainty.moments import VARIANTS
from fvlm.uncertainty.plots import plot_icc, plot_sheet
from fvlm.uncertainty.sampling import Sampler, UncertaintyParams, score_frames
from fvlm.uncertainty.sites import match_sites
from fvlm.uncertainty.summary import FrameName, Summary, summarize
from fvlm.uncertainty.tower import load_tower
from fvlm.uncertainty.validity import blur, downsample
from pipeline.stage import run

CLIPS, METRICS = Path("data/decode"), Path("metrics/uncertainty.json")
FRAMES, BY_PASSES = Path("plots/uncertainty.csv"), Path("plots/uncertainty_icc.csv")
CURVE, SHEET = Path("plots/uncertainty_icc.png"), Path("plots/uncertainty_frames.png")
CODE = 1  # raise when the same parameters give other scores: kept ones are then made anew


class Sections(Params):
    """What this stage reads of params.yaml."""

    uncertainty: UncertaintyParams


def main() -> None:
    """Score frames, clean and changed, and write figures, tables and pictures."""
    params, device = load_params(Sections).uncertainty, default_device()
    started = time.monotonic()
    frames, names = load_frames(params)
    tower, source = load_tower(params.model)
    sampler = Sampler(tower, match_sites(params.sites, tower.sites), params, device)
    samples = [name.sample for name in names]
    # What scores depend on; how many share a forward is not part of it.
    deciding = {"model", "p", "seed", "passes", "snapshots", "trials", "dtype"}
    described = params.model_dump(include=deciding) | dataclasses.asdict(source)
    described |= {"code": CODE, "sites": sampler.sites, "samples": samples, "device": device.type}
    described["frames"] = [shard["sha256"] for shard in read_manifest(CLIPS)["shards"]]
    state = state_folder() / "uncertainty"
    score = partial(score_frames, sampler, frames, samples)
    plan: dict[str, Any] = {
        "blur": partial(blur, sigma=params.blur_sigma),
        "downsample": partial(downsample, factor=params.downsample),
    }
    with torch.inference_mode():  # faults show before the long work
        first = torch.from_numpy(frames[:1]).to(device)
        for pixels in (first, *(change(first) for change in plan.values())):
            tower.check(pixels)
    kept = {"clean": state / f"{hash_json(described)[:16]}.safetensors"}
    kept |= {
        kind: state / f"{hash_json(described | {kind: change.keywords})[:16]}.safetensors"
        for kind, change in plan.items()
    }
    scores = score(trials=params.trials, title="uncertainty", state=kept["clean"])
    changed = {
        kind: score(trials=1, title=kind, state=kept[kind], change=change)
        for kind, change in plan.items()
    }
    summary = summarize(scores, changed, names, params)
    seconds = time.monotonic() - started
    rate = {"seconds": round(seconds, 1), "peak_memory_gib": round(peak_memory_gib(device), 2)}
    write_json(METRICS, {"model": params.model, "revision": source.revision}
               | summary.metrics | rate)  # fmt: skip
    write_csv(FRAMES, summary.frames)
    write_csv(BY_PASSES, summary.by_passes)
    draw(summary, frames, names, scores)
    for path in kept.values():
        path.unlink(missing_ok=True)
    for variant in VARIANTS:
        figures = {name: summary.metrics[f"{variant}_{name}"] for name in ("icc", "snr", "verdict")}
        print(f"{variant}: {figures}")


def load_frames(params: UncertaintyParams) -> tuple[NDArray[np.uint8], list[FrameName]]:
    """Frames uint8 [N,3,S,S] and their names: some clips, some evenly spaced frames of each.

    Which clips are taken depends on the clips alone, so that one more video changes one clip.
    """
    manifest = read_manifest(CLIPS)
    splits = dict.fromkeys(shard["split"] for shard in manifest["shards"])
    readers = [open_shards(CLIPS, split=split) for split in splits]
    known = [(key, reader, row) for reader in readers for row, key in enumerate(reader.keys)]
    if not known:
        raise ParamsError(f"{CLIPS} holds no clips; every video was filtered out or quarantined")
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
    plot_icc(summary.by_passes, summary.t_half, CURVE, title=title)
    means = scores[VARIANTS.index("post"), -1].mean(axis=0)
    title = f"Uncertainty of the normalised embedding / its median over {count}"
    labels = [f"{Path(name.video_id).stem} #{name.number}" for name in names]
    plot_sheet(frames, means, labels, SHEET, title=title)


if __name__ == "__main__":
    run(main)
