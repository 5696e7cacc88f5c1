"""Calibrate the instrument: the whole pipeline on corpora whose outcome is known.

`fvlm calibrate answers` does the same for questions and their answers.

Reads   params.yaml, presets/calibration.yaml
Writes  metrics/calibrate.json, plots/calibrate.png, build/calibrate/ (what the stages made there)

Every corpus is rendered, filtered, decoded and encoded by the stages themselves, and every trial
is trained once a seed, in folders of their own. A folder that is finished is not made again as long
as its parameters and this code stay the same.
"""

import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fvlm.calibration.cases import (
    COPIES,
    judge_cases,
    missed_cases,
    save_handicapped,
    save_message_channel,
    write_replicates,
)
from fvlm.calibration.figures import plot_calibration
from fvlm.calibration.trials import (
    MESSAGE_TRIAL,
    SPOILT_TRIAL,
    TRIALS,
    CalibrateParams,
    Calibration,
    Trained,
    Trial,
    TrialResult,
    failures,
    figures_of,
    measure,
)
from fvlm.cli import calibrate_answers
from fvlm.cli.folders import Changes, Folders
from fvlm.clips.batch import Batch
from fvlm.clips.reader import ClipReader, open_clips
from fvlm.core.document import read_document, write_figures
from fvlm.core.errors import FvlmError
from fvlm.core.io import atomic_write, write_timings
from fvlm.core.params import Params, load_params, read_yaml
from fvlm.core.progress import Progress
from fvlm.core.stage import new_parser
from fvlm.evaluation.baselines import fit_baselines
from fvlm.evaluation.losses import EvaluateParams, coarse_losses, evaluate_clips
from fvlm.model.saved import load_model
from fvlm.shards.read import open_shards
from fvlm.statistics.arms import ClipName, Losses
from fvlm.statistics.evaluation import Evaluation, HeldOut
from pipeline.paths import (
    CALIBRATE_METRICS,
    CALIBRATE_PLOT,
    CALIBRATION_PRESET,
    CALIBRATION_WORK,
    COARSE_ONLY,
    ENCODED,
    EVALUATION,
    FRAMES,
    MODEL,
)


class Sections(Params):
    """What this command reads of params.yaml; presets/calibration.yaml goes over all of it."""

    calibrate: CalibrateParams
    evaluate: EvaluateParams


def command_line() -> ArgumentParser:
    """What the command is given."""
    parser = new_parser(__doc__, "fvlm calibrate")
    parser.add_argument("what", nargs="?", choices=["answers"], help="default: the two passes")
    parser.add_argument(
        "--all", action="store_true", help="answers: with the trials that take longer"
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Make what is missing, measure every trial, and write the figures.

    Raises FvlmError, with the figures written, when the instrument misses a requirement.
    """
    if arguments[:1] == ["answers"]:
        calibrate_answers.main(arguments[1:])
        return
    parser = command_line()
    if parser.parse_args(arguments) != parser.parse_args([]):
        parser.error("--all stands behind answers")
    started = time.monotonic()
    torch.set_num_threads(1)  # several trainings side by side use the cores better
    sections = load_params(Sections)
    seeds, processes = sections.calibrate.seeds, sections.calibrate.processes
    roots = (evaluate_clips, fit_baselines, coarse_losses, save_message_channel)
    folders = Folders(CALIBRATION_PRESET, *roots)
    bench = _Bench(folders, sections.evaluate)
    trainings = [
        (trial, seed, seeds[0])
        for trial in TRIALS
        for seed in (seeds if trial.replicated else seeds[:1])
    ]
    corpora = list(dict.fromkeys(trial.corpus for trial in TRIALS))
    encodings = list(dict.fromkeys((trial.corpus, trial.blocks, trial.layer) for trial in TRIALS))
    # The longest trainings first, so that none is left alone at the end.
    trainings.sort(key=lambda training: -training[0].query_layers)
    cases = [(case, seeds[0]) for case in CASES]
    total = len(corpora) + len(encodings) + len(trainings) + len(cases)
    with Progress("calibrate", total=total, unit="step") as progress:
        folders.side_by_side(bench.decode, [(corpus,) for corpus in corpora], 1, progress)
        folders.side_by_side(bench.encode, encodings, processes, progress)
        folders.side_by_side(bench.train, trainings, processes, progress)
        folders.side_by_side(bench.evaluate, cases, processes, progress)
    results = bench.results(seeds)
    judged = judge_cases({case: _evaluated(case) for case in CASES})
    missed = failures(figures_of(results), TRIALS) + missed_cases(judged)
    write_timings("calibrate", seconds=time.monotonic() - started)
    write_figures(
        CALIBRATE_METRICS,
        Calibration(
            calibrated=not missed,
            failures=missed,
            cases=judged,
            trials=results,
        ),
    )
    plot_calibration(results, TRIALS, CALIBRATE_PLOT)
    if missed:
        missed.insert(0, f"{len(missed)} requirements are not met, see {CALIBRATE_METRICS}:")
        raise FvlmError("\n".join(missed))
    print("calibrate: the instrument shows a gain where there is one, and none where there is none")


class _Bench:
    """The folders under build/calibrate and what is done in them."""

    def __init__(self, folders: Folders, params: EvaluateParams) -> None:
        self._folders, self._params = folders, params
        self._batch_size = read_yaml(CALIBRATION_PRESET)["train"]["batch_size"]

    def decode(self, corpus: str) -> None:
        """Render, list, filter and decode a corpus."""
        changes = {"collect": {"source": corpus}}
        self._folders.make(CALIBRATION_WORK / corpus, changes, {}, ["collect", "filter", "decode"])

    def encode(self, corpus: str, blocks: int, layer: int) -> None:
        """Encode a decoded corpus up to this layer of the encoder's first blocks."""
        changes = {"encode": {"dino_layers": blocks, "layer": layer}}
        links = {FRAMES: CALIBRATION_WORK / corpus / FRAMES}
        self._folders.make(_encoded_folder(corpus, blocks, layer), changes, links, ["encode"])

    def train(self, trial: Trial, seed: int, first_seed: int) -> None:
        """Train one trial, and keep its losses on held-out and on as many training clips."""
        changes: Changes = {
            "encode": {"dino_layers": trial.blocks, "layer": trial.layer},
            "model": {
                "query_layers": trial.query_layers,
                "intermediate_tokens": trial.query_layers == 0,
                "temperature": trial.temperature,
            },
            "train": {
                "seeds": [seed],
                "max_samples": trial.steps * self._batch_size,
                "coarse_only": trial.coarse_only and seed == first_seed,
            },
        }
        frames = CALIBRATION_WORK / trial.corpus / FRAMES
        links = {ENCODED: _encoded(trial) / ENCODED, FRAMES: frames}
        self._folders.make(_trained(trial, seed), changes, links, ["train"], then=self._keep_losses)

    def evaluate(self, case: str, seed: int) -> None:
        """Run the evaluate stage on what a case is made of."""
        trial = MESSAGE_TRIAL if case == "message_channel" else SPOILT_TRIAL
        trained, shards = _trained(trial, seed), (_encoded(trial) / ENCODED)
        links, first = {ENCODED: shards}, partial(_save_case_model, case, trained / MODEL)
        if case in REPLICATES:
            links = {MODEL: trained / MODEL}
            first = partial(_write_case_shards, REPLICATES[case], shards)
        self._folders.make(CALIBRATION_WORK / case, {}, links, ["evaluate"], first=first)

    def results(self, seeds: Sequence[int]) -> dict[str, TrialResult]:
        """What every trial shows."""
        results = {}
        for trial in TRIALS:
            trained = [
                Trained(seed, *(_read_losses(_trained(trial, seed) / name) for name in _SPLITS))
                for seed in (seeds if trial.replicated else seeds[:1])
            ]
            results[trial.name] = measure(
                trained,
                samples=self._params.bootstrap_samples,
                seed=self._params.seed,
            )
        return results

    def _keep_losses(self, folder: Path) -> None:
        model = load_model(folder / MODEL)
        baselines = fit_baselines(_latents(folder / ENCODED, "train"))
        held_out = len(
            open_clips(folder / ENCODED, folder / FRAMES, split="val", input=model.input)
        )
        for name, split in _SPLITS.items():
            reader = open_clips(folder / ENCODED, folder / FRAMES, split=split, input=model.input)
            losses = evaluate_clips(
                model,
                partial(_read_all_frames, reader),
                [ClipName(key, key) for key in reader.keys[:held_out]],
                batch_size=self._params.batch_size,
                seed=self._params.seed,
                device=torch.device("cpu"),
                baselines=baselines,
            )
            twin = folder / COARSE_ONLY
            if twin.exists():
                losses["coarse_only"] = coarse_losses(
                    load_model(twin),
                    partial(_read_all_frames, reader),
                    len(losses["fine"]),
                    batch_size=self._params.batch_size,
                    device=torch.device("cpu"),
                )
            with atomic_write(folder / name) as file:
                np.savez(file, allow_pickle=False, **losses)


CLIPS_AT_ONCE = 256
_SPLITS = {"held_out.npz": "val", "training.npz": "train"}


REPLICATES = {"replicates": COPIES, "replicates_alone": 1}  # copies of each video
CASES = ("handicapped_coarse", "message_channel", *REPLICATES)


def _save_case_model(case: str, source: Path, folder: Path) -> None:
    if case == "message_channel":
        save_message_channel(source, folder / MODEL)
        return
    reader = open_clips(folder / ENCODED, folder / FRAMES, split="val", input="features")
    rows = range(min(CLIPS_AT_ONCE, len(reader)))
    save_handicapped(source, folder / MODEL, _read_all_frames(reader, rows))


def _write_case_shards(copies: int, source: Path, folder: Path) -> None:
    write_replicates(source, folder / ENCODED, copies=copies)


def _evaluated(case: str) -> HeldOut:
    return read_document(Evaluation, CALIBRATION_WORK / case / EVALUATION).held_out


def _encoded(trial: Trial) -> Path:
    return _encoded_folder(trial.corpus, trial.blocks, trial.layer)


def _encoded_folder(corpus: str, blocks: int, layer: int) -> Path:
    return CALIBRATION_WORK / f"{corpus}-layer-{layer}-of-{blocks}"


def _trained(trial: Trial, seed: int) -> Path:
    return CALIBRATION_WORK / f"{trial.name}-seed-{seed}"


def _read_all_frames(reader: ClipReader, rows: range) -> Batch:
    return reader.read(rows, np.arange(reader.stored))


def _read_losses(path: Path) -> Losses:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _latents(shards: Path, split: str) -> Iterator[torch.Tensor]:
    """All latents of a split, some clips at a time."""
    found = open_shards(shards, split=split)
    for start in range(0, len(found.keys), CLIPS_AT_ONCE):
        rows = range(start, min(start + CLIPS_AT_ONCE, len(found.keys)))
        yield torch.from_numpy(found.read(rows, fields=("latents",))["latents"])
