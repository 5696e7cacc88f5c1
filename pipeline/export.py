"""Export the trained model for a model hub: `python -m pipeline.export FOLDER`.

Reads   models/foveated/, metrics/train.json, metrics/evaluate.json
Writes  FOLDER: weights, config, tokenizer of a model with text, and a model card (README.md)
"""

import shutil
import sys
from pathlib import Path

from fvlm.errors import ParamsError
from fvlm.io import atomic_write, read_json
from fvlm.models.build import CONFIG, TOKENIZER, WEIGHTS, load_model, load_tokenizer_of
from fvlm.report.card import render_card
from fvlm.report.provenance import git_commit, package_versions
from pipeline.stage import run

MODEL = Path("models/foveated")
TRAIN, EVALUATE = Path("metrics/train.json"), Path("metrics/evaluate.json")
CARD = "README.md"


def main() -> None:
    """Check that the model loads, then copy it and write its card."""
    if len(sys.argv) != 2:
        raise ParamsError("usage: python -m pipeline.export FOLDER")
    folder = Path(sys.argv[1])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ParamsError(f"{folder} is there already and not an empty folder; choose another one")
    load_model(MODEL)
    card = render_card(
        read_json(MODEL / CONFIG),
        evaluation=read_json(EVALUATE),
        training=read_json(TRAIN),
        commit=git_commit(Path()),
        versions=package_versions(),
    )
    for name in (CONFIG, WEIGHTS, *([TOKENIZER] if load_tokenizer_of(MODEL) else [])):
        with (MODEL / name).open("rb") as source, atomic_write(folder / name) as target:
            shutil.copyfileobj(source, target)
    with atomic_write(folder / CARD) as file:
        file.write(card.encode())
    print(f"{folder} is ready: the model loads with fvlm.models.build.load_model({str(folder)!r})")


if __name__ == "__main__":
    run(main)
