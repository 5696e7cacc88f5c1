"""Score how uncertain a vision tower is about the decoded frames: Monte-Carlo dropout.

Its own pipeline file: `dvc repro uncertainty/dvc.yaml`.

Reads   data/decode/, params.yaml:uncertainty
Writes  metrics/uncertainty.json, plots/uncertainty.csv (frames), plots/uncertainty_icc.csv,
        plots/uncertainty/TOWER_icc.png and TOWER_frames.png

Finished scores are kept below .state/ and handed back, so that one more tower scores nothing else
again; `fvlm forget uncertainty` has them made anew.
"""

import dataclasses
import shutil
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
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
from fvlm.core.kept import counts, remade
from fvlm.core.params import Params, load_params
from fvlm.core.seeding import unit_hash
from fvlm.core.stage import run
from fvlm.shards.manifest import FrameManifest, read_manifest
from fvlm.shards.read import open_shards
from fvlm.uncertainty.moments import VARIANTS
from fvlm.uncertainty.plots import plot_icc, plot_sheet
from fvlm.uncertainty.sampling import (
    FILLING,
    Sampler,
    Scores,
    UncertaintyParams,
    score_frames,
)
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
    UNCERTAINTY_PICTURES,
)

STATES = "uncertainty"  # scores of runs, below .state/
WEEK = 7 * 24 * 3600.0
# Rounding changed scores of tiny towers by 5% around here, and by more below.
WEAK = 4 * torch.finfo(torch.bfloat16).eps ** 2


class Sections(Params):
    """What this stage reads of params.yaml."""

    uncertainty: UncertaintyParams


def main() -> None:
    """Score frames, clean and changed, with each tower, and write figures, tables and pictures."""
    params, device = load_params(Sections).uncertainty, default_device()
    if params.compile and device.type == "mps":
        print("uncertainty.compile: skipped, torch does not compile for Apple's GPUs")
        params = params.model_copy(update={"compile": False})
    started = time.monotonic()
    made_by(score_frames)  # read now: an edit while weights load is not this code
    frames, names = load_frames(params)
    samples = [name.sample for name in names]
    prepared = [prepare(name, params, frames, samples, device) for name in params.towers]
    summaries = dict[str, Summary]()
    shutil.rmtree(UNCERTAINTY_PICTURES, ignore_errors=True)
    for tower in prepared:
        scores, changed = tower.scores(frames, samples)
        warn_of_rounding(tower, scores)
        summaries[tower.name] = summary = summarize(scores, changed, names, params)
        draw(tower.name, summary, frames, names, scores)
        for variant in VARIANTS:
            found = {
                what: summary.metrics[f"{variant}_{what}"] for what in ("icc", "snr", "verdict")
            }
            print(f"{tower.name}, {variant}: {found}")
    write_figures(
        UNCERTAINTY_METRICS,
        {
            tower.name: {
                "model": params.towers[tower.name].model,
                "revision": tower.source.revision,
                **summaries[tower.name].metrics,
            }
            for tower in prepared
        },
    )
    write_timings(
        "uncertainty",
        seconds=time.monotonic() - started,
        peak_memory_gib=peak_memory_gib(device),
    )
    for path, table in ((UNCERTAINTY, "frames"), (UNCERTAINTY_BY_PASSES, "by_passes")):
        rows = ((name, row) for name, one in summaries.items() for row in getattr(one, table))
        write_csv(path, [{"tower": name} | row for name, row in rows])
    forget([path for tower in prepared for path in tower.kept.values()])
    remade(STATES)


@dataclass(frozen=True)
class Prepared:
    """A tower that was checked; width: of its embedding. changes: what is done to frames, by kind.

    kept: by kind, and for clean frames, the file of its scores.
    """

    name: str
    sampler: Sampler
    source: Provenance
    width: int
    changes: dict[str, partial[Tensor]]
    kept: dict[str, Path]

    def scores(
        self, frames: NDArray[np.uint8], samples: list[str]
    ) -> tuple[Scores, dict[str, Scores]]:
        """Scores float64 [2,S,K,N] of clean frames, and [2,S,1,N] of changed ones, by kind."""
        score = partial(score_frames, self.sampler, frames, samples)
        trials, title = self.sampler.params.trials, f"uncertainty {self.name}"
        clean = score(trials=trials, title=title, state=self.kept["clean"])
        return clean, {
            kind: score(trials=1, title=f"{title}, {kind}", state=self.kept[kind], change=change)
            for kind, change in self.changes.items()
        }


def prepare(
    name: str,
    params: UncertaintyParams,
    frames: NDArray[np.uint8],
    samples: list[str],
    device: torch.device,
) -> Prepared:
    """Load a tower and try it on a frame, so that faults of each show before the long work."""
    chosen, key = params.towers[name], f"uncertainty.towers.{name}"
    tower, source = load_tower(chosen.model)
    sites = match_sites(chosen.sites, tower.sites, key=f"{key}.sites")
    batch = FILLING[device.type] if chosen.batch_size == "auto" else chosen.batch_size
    sampler = Sampler(tower, sites, params, device, batch)
    changes = {
        "blur": partial(blur, sigma=params.blur_sigma),
        "downsample": partial(downsample, factor=params.downsample),
    }
    first = torch.from_numpy(frames[:1])
    with torch.inference_mode():
        shown = first.to(device)
        for pixels in (shown, *(change(shown) for change in changes.values())):
            width = tower.check(pixels).shape[-1]
    kept = state_files(sampler, source, samples, changes)
    if not all(path.is_file() for path in kept.values()):
        frame_trials = len(frames) * (params.trials + len(changes))
        hours = frame_trials * seconds_a_trial(sampler, first) / 3600
        print(
            f"uncertainty {name}: {frame_trials * params.passes:,} passes, {batch} in a forward: "
            f"about {hours:.2f} hours on {device.type}"
        )
    return Prepared(name, sampler, source, width, changes, kept)


def seconds_a_trial(sampler: Sampler, frame: Tensor) -> float:
    """How long a trial of one frame takes while every worker has such a frame.

    frame: uint8 [1,3,S,S].
    """
    sampler.scores(frame, ["frame"], trials=1)  # what is compiled or cached is so now
    with sampler.ahead() as ahead:
        rounds, started = 2 * ahead.workers, time.monotonic()
        for _ in ahead.map(lambda _: sampler.scores(frame, ["frame"], trials=1), range(rounds)):
            pass
        return (time.monotonic() - started) / rounds


def state_files(
    sampler: Sampler, source: Provenance, samples: list[str], changes: dict[str, partial[Tensor]]
) -> dict[str, Path]:
    """Where scores of clean and of changed frames are kept, each named after all that decides them.

    How many passes share a forward is not part of it.
    """
    deciding = {"p", "seed", "passes", "snapshots", "trials", "dtype", "compile"}
    common = sampler.params.model_dump(include=deciding) | dataclasses.asdict(source)
    common |= {"made_by": made_by(score_frames), "device": sampler.device.type, "samples": samples}
    common |= {"tower": sampler.tower.identity, "sites": sampler.sites}
    common["frames"] = [shard.sha256 for shard in read_manifest(FRAMES, FrameManifest).shards]
    own: dict[str, Any] = {kind: {kind: change.keywords} for kind, change in changes.items()}
    kept = {
        kind: state_folder() / STATES / f"{hash_json(common | keywords)[:16]}.safetensors"
        for kind, keywords in ({"clean": {}} | own).items()
    }
    for path in kept.values():
        if not counts(STATES, path):
            path.unlink(missing_ok=True)
    return kept


def warn_of_rounding(tower: Prepared, scores: Scores) -> None:
    """Say so when scores are so small that what bfloat16 rounds off is a part of them."""
    relative = tower.width * float(np.median(scores[VARIANTS.index("post"), -1]))
    if tower.sampler.params.dtype == "bfloat16" and relative < WEAK:
        print(
            f"warning: scores of {tower.name} are {relative:.1g} of the embedding's square, so "
            "small that rounding to bfloat16 is a part of them; set uncertainty.dtype: float32",
            file=sys.stderr,
        )


def forget(kept: Collection[Path]) -> None:
    """Delete scores that no run asked for in a week; these were asked for now.

    They are small. An experiment with other parameters may be running beside this one.
    """
    for path in kept:
        path.touch()
    for path in (state_folder() / STATES).glob("*.safetensors"):
        with suppress(FileNotFoundError):  # the other experiment's end
            if time.time() - path.stat().st_mtime > WEEK:
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
    tower: str,
    summary: Summary,
    frames: NDArray[np.uint8],
    names: list[FrameName],
    scores: Scores,
) -> None:
    """The two pictures of a tower."""
    count = f"{summary.metrics['frames']} frames of {summary.metrics['clips']} clips"
    trials = f"{summary.metrics['trials']} trials"
    title = f"{tower}: reliability of one trial's scores  ({count}, {trials})"
    path = UNCERTAINTY_PICTURES / f"{tower}_icc.png"
    plot_icc(summary.by_passes, summary.t_half, path, title=title)
    means = scores[VARIANTS.index("post"), -1].mean(axis=0)
    title = f"{tower}: uncertainty of the normalised embedding / its median over {count}"
    labels = [f"{Path(name.video_id).stem} #{name.number}" for name in names]
    path = UNCERTAINTY_PICTURES / f"{tower}_frames.png"
    plot_sheet(frames, means, labels, path, title=title)


if __name__ == "__main__":
    run(main, batch_key="batch_size in uncertainty.towers")
