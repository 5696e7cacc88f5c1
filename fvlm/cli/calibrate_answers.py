"""Calibrate the instrument for answers: `fvlm calibrate answers`.

Reads   params.yaml, presets/calibration.yaml
Writes  metrics/calibrate_answers.json, plots/calibrate_answers.png, build/calibrate/ (what the
        stages made there)

Corpora of questions with known answers go through the stages themselves. A folder that is finished
is not made again as long as its parameters and this code stay the same.
"""

import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fvlm.calibration.answers import SAME_PICTURES, TRIALS, AnswerTrial, Changes, failures
from fvlm.calibration.figures import plot_answers
from fvlm.calibration.trials import CalibrateParams
from fvlm.cli.folders import Folders
from fvlm.core.document import flatten, write_figures
from fvlm.core.errors import FvlmError
from fvlm.core.io import read_csv, write_timings
from fvlm.core.params import Params, load_params
from fvlm.core.progress import Progress
from fvlm.core.stage import new_parser
from fvlm.evaluation.quiz import QuizParams
from fvlm.statistics.quiz import QuizResult, read_question_rows, summarize
from pipeline.paths import (
    CALIBRATE_ANSWERS_METRICS,
    CALIBRATE_ANSWERS_PLOT,
    CALIBRATION_PRESET,
    CALIBRATION_WORK,
    ENCODED,
    FRAMES,
    QUESTIONS,
    QUIZ_BY_QUESTION,
)

WORK = CALIBRATION_WORK / "answers"


class Sections(Params):
    """What this command reads of params.yaml; presets/calibration.yaml goes over all of it."""

    calibrate: CalibrateParams
    quiz: QuizParams


def command_line() -> ArgumentParser:
    """What the command is given."""
    parser = new_parser(__doc__, "fvlm calibrate answers")
    parser.add_argument("--all", action="store_true", help="also the trials that take an hour more")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Make what is missing, measure every trial, and write the figures.

    Raises FvlmError, with the figures written, when the instrument misses a requirement.
    """
    every = command_line().parse_args(arguments).all
    started = time.monotonic()
    torch.set_num_threads(1)  # several trainings side by side use the cores better
    sections = load_params(Sections)
    seeds, processes = sections.calibrate.seeds, sections.calibrate.processes
    trials = [trial for trial in TRIALS if every or not trial.only_all]
    runs = [(trial, seed) for trial in trials for seed in seeds_of(trial, seeds)]
    corpora = list(dict.fromkeys(trial.corpus for trial in trials))
    encodings = list({_encoded(trial): trial for trial in trials}.values())
    folders = Folders(CALIBRATION_PRESET)
    total = len(corpora) + len(encodings) + len(runs)
    with Progress("calibrate answers", total=total, unit="step") as progress:
        decoded = [(folders, corpus) for corpus in corpora]
        folders.side_by_side(_decode, decoded, 1, progress)
        encoded = [(folders, trial) for trial in encodings]
        folders.side_by_side(_encode, encoded, processes, progress)
        folders.side_by_side(_train, [(folders, *run) for run in runs], processes, progress)
    results = {trial.name: _measure(trial, seeds, sections.quiz) for trial in trials}
    figures = {
        f"{trial}_{name}": value
        for trial, result in results.items()
        for name, value in flatten(result).items()
    }
    missed = failures(figures, trials)
    write_timings("calibrate_answers", seconds=time.monotonic() - started)
    write_figures(
        CALIBRATE_ANSWERS_METRICS, {"calibrated": not missed, "failures": missed} | figures
    )
    plot_answers(results, CALIBRATE_ANSWERS_PLOT)
    if missed:
        head = f"{len(missed)} requirements are not met, see {CALIBRATE_ANSWERS_METRICS}:"
        raise FvlmError("\n".join([head, *missed]))
    print("calibrate answers: the instrument shows a gain where there is one, and none elsewhere")


def seeds_of(trial: AnswerTrial, seeds: Sequence[int]) -> Sequence[int]:
    """Those that a trial is trained with."""
    return seeds if trial.replicated else seeds[:1]


def _decode(folders: Folders, corpus: str) -> None:
    changes: Changes = {"collect": {"source": corpus}}
    stages = ["collect", "filter", *(["decode"] * (corpus not in SAME_PICTURES))]
    folders.make(WORK / corpus, changes, {}, stages)


def _encode(folders: Folders, trial: AnswerTrial) -> None:
    links = {FRAMES: WORK / trial.pictures / FRAMES}
    changes = {name: trial.changes[name] for name in ("encode",) if name in trial.changes}
    folders.make(_encoded(trial), changes, links, ["encode"])


def _train(folders: Folders, trial: AnswerTrial, seed: int) -> None:
    links = {
        ENCODED: _encoded(trial) / ENCODED,
        FRAMES: WORK / trial.pictures / FRAMES,
        QUESTIONS.parent: WORK / trial.corpus / QUESTIONS.parent,
    }
    changes: Changes = {name: dict(values) for name, values in trial.changes.items()}
    changes.setdefault("instruct", {})["seeds"] = [seed]
    stages = ["instruct", *(["prefer"] * trial.prefers), "quiz"]
    folders.make(_trained(trial, seed), changes, links, stages)


def _encoded(trial: AnswerTrial) -> Path:
    chosen: dict[str, Any] = trial.changes.get("encode", {})
    return WORK / "-".join([trial.pictures, "encoded", *(str(value) for value in chosen.values())])


def _trained(trial: AnswerTrial, seed: int) -> Path:
    return WORK / f"{trial.name}-seed-{seed}"


def _measure(trial: AnswerTrial, seeds: Sequence[int], params: QuizParams) -> QuizResult:
    found = {
        seed: read_question_rows(read_csv(_trained(trial, seed) / QUIZ_BY_QUESTION))
        for seed in seeds_of(trial, seeds)
    }
    questions = next(iter(found.values()))[0]
    runs = {seed: answered for seed, (_, answered) in found.items()}
    return summarize(questions, runs, samples=params.bootstrap_samples, seed=params.seed)
