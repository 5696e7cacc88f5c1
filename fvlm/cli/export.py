"""Export the trained model for a model hub: `fvlm export FOLDER`.

Reads   models/foveated/, metrics/train.json, data/evaluation.json
Writes  FOLDER: weights, config, tokenizer of a model with text, and a model card (README.md)
"""

import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from fvlm.core.document import read_document
from fvlm.core.errors import FvlmError, ParamsError
from fvlm.core.io import atomic_write, read_json
from fvlm.core.provenance import git_commit, package_versions
from fvlm.core.stage import given_path, new_parser
from fvlm.model.saved import CONFIG, TOKENIZER, WEIGHTS, load_model, load_tokenizer_of
from fvlm.report.card import render_card
from fvlm.statistics.evaluation import Evaluation
from pipeline.paths import EVALUATION, MODEL, TRAIN_METRICS

CARD = "README.md"


def command_line() -> ArgumentParser:
    """What the command is given."""
    parser = new_parser(__doc__, "fvlm export")
    parser.add_argument("folder", metavar="FOLDER", type=given_path)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Check that the model loads, then copy it and write its card."""
    folder: Path = command_line().parse_args(arguments).folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ParamsError(f"{folder} is there already and not an empty folder; choose another one")
    load_model(MODEL)
    config = read_json(MODEL / CONFIG)
    evaluation = read_document(Evaluation, EVALUATION)
    if not config["weights_sha256"].startswith(evaluation.weights):
        raise FvlmError(
            f"{EVALUATION} is of other weights than {MODEL}; run `dvc repro -f -s evaluate`"
        )
    card = render_card(
        config,
        evaluation=evaluation,
        training=read_json(TRAIN_METRICS),
        commit=git_commit(Path()),
        versions=package_versions(),
    )
    for name in (CONFIG, WEIGHTS, *([TOKENIZER] if load_tokenizer_of(MODEL) else [])):
        with (MODEL / name).open("rb") as source, atomic_write(folder / name) as target:
            shutil.copyfileobj(source, target)
    with atomic_write(folder / CARD) as file:
        file.write(card.encode())
    print(f"{folder} is ready: the model loads with fvlm.model.saved.load_model({str(folder)!r})")
