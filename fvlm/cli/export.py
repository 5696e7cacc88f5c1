"""Export the trained model for a model hub: `fvlm export FOLDER`.

Reads   models/foveated/, metrics/train.json, data/evaluation.json, params.yaml:collect
Writes  FOLDER: weights, config, tokenizer of a model with text, a model card (README.md), and in
        dino/ and vae/ encoders that are no package and in no hub

`load_model(FOLDER).push_to_hub("owner/name")` puts it into a model hub.
"""

import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from fvlm.core.document import read_document
from fvlm.core.errors import FvlmError, ParamsError, WeightsError
from fvlm.core.io import atomic_write, read_json
from fvlm.core.params import PARAMS, read_yaml
from fvlm.core.provenance import git_commit, package_versions
from fvlm.core.stage import given_path, new_parser
from fvlm.model.hub import CARD, CONFIG, PARTS, TOKENIZER, WEIGHTS
from fvlm.model.saved import ModelConfig, load_model
from fvlm.report.card import render_card
from fvlm.statistics.evaluation import Evaluation
from fvlm.weights import sources
from fvlm.weights.resolve import resolve
from pipeline.paths import EVALUATION, MODEL, TRAIN_METRICS


def command_line() -> ArgumentParser:
    """What the command is given."""
    parser = new_parser(__doc__, "fvlm export")
    parser.add_argument("folder", metavar="FOLDER", type=given_path)
    parser.add_argument(
        "--license", default="mit", help="of the weights, for the card; default: %(default)s"
    )
    parser.add_argument(
        "--dataset",
        action="append",
        metavar="ID",
        help="the hub's id of the videos, for the card; may be given again; default: the name of "
        "collect.source",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Check that the model loads, then copy it and write its card."""
    chosen = command_line().parse_args(arguments)
    folder: Path = chosen.folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ParamsError(f"{folder} is there already and not an empty folder; choose another one")
    config = load_model(MODEL).config
    evaluation = read_document(Evaluation, EVALUATION)
    if not config.weights_sha256.startswith(evaluation.weights):
        raise FvlmError(
            f"{EVALUATION} is of other weights than {MODEL}; run `dvc repro -f -s evaluate`"
        )
    parts = list_parts(config)
    card = render_card(
        read_json(MODEL / CONFIG),
        evaluation=evaluation,
        training=read_json(TRAIN_METRICS),
        commit=git_commit(Path()),
        versions=package_versions(),
        license=chosen.license,
        datasets=chosen.dataset or [Path(read_yaml(PARAMS)["collect"]["source"]).stem],
        enclosed=sorted({name.split("/")[0] for name in parts}),
    )
    files = {name: MODEL / name for name in (CONFIG, WEIGHTS, TOKENIZER)} | parts
    for name, path in files.items():
        if path.is_file():
            with path.open("rb") as source, atomic_write(folder / name) as target:
                shutil.copyfileobj(source, target)
    with atomic_write(folder / CARD) as file:
        file.write(card.encode())
    print(f"{folder} is ready: the model loads with fvlm.load_model({str(folder)!r})")


def list_parts(config: ModelConfig) -> dict[str, Path]:
    """Files of the encoders that lie in folders of this machine, by their names in an export.

    Raises WeightsError when one is gone or holds other weights than the model was trained with.
    """
    found = dict[str, Path]()
    for kind in PARTS:
        part = getattr(config.provenance, kind)
        if not part.revision:  # neither a package nor of the hub
            resolved = resolve(part.source, kind=kind)
            if resolved.provenance.sha256 != part.sha256:
                raise WeightsError(
                    f"{part.source} holds other weights by now than those that {MODEL} was trained "
                    "with: put them back, or run `dvc repro`"
                )
            names = (CONFIG, *sources.WEIGHTS)
            paths = (path for name in names for path in sorted(resolved.folder.glob(name)))
            found |= {f"{kind}/{path.name}": path for path in paths}
    return found
