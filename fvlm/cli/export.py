"""Export the trained model for a model hub: `python -m fvlm.cli.export FOLDER`.

Reads   models/foveated/, metrics/train.json, metrics/evaluate.json
Writes  FOLDER: weights, config, tokenizer of a model with text, and a model card (README.md)
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fvlm.core.document import read_figures
from fvlm.core.errors import FvlmError, ParamsError
from fvlm.core.io import atomic_write, read_json
from fvlm.core.provenance import git_commit, package_versions
from fvlm.core.stage import command_line, run
from fvlm.model.saved import CONFIG, TOKENIZER, WEIGHTS, load_model, load_tokenizer_of
from fvlm.report.card import render_card
from fvlm.statistics.evaluation import Evaluation
from pipeline.paths import EVALUATE_METRICS, MODEL, TRAIN_METRICS

CARD = "README.md"


def main(arguments: Sequence[str] | None = None) -> None:
    """Check that the model loads, then copy it and write its card."""
    parser = command_line(__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ParamsError(f"{folder} is there already and not an empty folder; choose another one")
    load_model(MODEL)
    config = read_json(MODEL / CONFIG)
    evaluation = read_figures(Evaluation, EVALUATE_METRICS)
    if not config["weights_sha256"].startswith(evaluation.weights):
        raise FvlmError(
            f"{EVALUATE_METRICS} is of other weights than {MODEL}; run `dvc repro -f -s evaluate`"
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


if __name__ == "__main__":
    run(main)
