"""Export the trained model for a model hub: `fvlm export FOLDER`.

Reads   models/foveated/, metrics/train.json, data/evaluation.json
Writes  FOLDER: weights, config, tokenizer of a model with text, and a model card (README.md)
"""

import json
import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fvlm.core.document import read_document
from fvlm.core.errors import FvlmError, ParamsError
from fvlm.core.io import atomic_write, read_json
from fvlm.core.provenance import git_commit, package_versions
from fvlm.core.stage import given_path, new_parser
from fvlm.model.saved import CONFIG, TOKENIZER, WEIGHTS, load_model, load_tokenizer_of
from fvlm.statistics.evaluation import Evaluation
from fvlm.statistics.tables import arm_rows, figure, ratio_cells, ratio_rows
from fvlm.statistics.verdict import describe, describe_power
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


def render_card(
    config: dict[str, Any],
    *,
    evaluation: Evaluation,
    training: dict[str, Any],
    commit: str,
    versions: dict[str, str],
) -> str:
    """The card as Markdown with a hub's header.

    config: of the saved model; training: metrics/train.json.
    """
    environment = Environment(
        loader=PackageLoader("fvlm.report", "."),
        autoescape=False,  # Markdown, not HTML
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    parts = config["provenance"]
    return environment.get_template("card.md").render(
        statement=describe(evaluation.held_out),
        power=describe_power(evaluation.held_out),
        ratios=ratio_rows(evaluation),
        arms=arm_rows(evaluation),
        figure=figure,
        ratio_cells=ratio_cells,
        training=training,
        input=config["input"],
        text=config["model"]["text"],
        token_shape=config["token_shape"],
        latent_shape=config["latent_shape"],
        layer=parts["dino"]["layer"],
        parts=parts,
        weights=config["weights_sha256"],
        commit=commit,
        versions=versions,
        params=json.dumps(config["model"], indent=2),
    )
