"""Train the foveated model on encoded clips, once for every seed; with train.coarse_only also one
without fine passes for each, and for each number of train.pooled_tokens one with so many tokens a
frame and no query.

Reads   data/encode/, data/decode/ (its frame size; with train.input: frames all of it), data/text/
        (model.text), params.yaml:model, params.yaml:train
Writes  models/foveated/ (the first seed's model, others in folders below), metrics/train.json,
        plots/train.csv and plots/validation.csv (of the first seed)

A training that was done before, with the same code, data and parameters, is handed back:
`fvlm forget train` has it done anew. With train.schedule: constant a larger train.max_samples goes
on where the training ended.

Out of time (train.max_hours) or stopped by SIGTERM or Ctrl-C it saves its state and exits with 75:
DVC keeps the stage unfinished, and the next `dvc repro` continues. Started by torchrun, all its
processes share each training; torchrun itself then exits with 1, as for any code of theirs but 0.
"""

from fvlm.core.errors import ParamsError
from fvlm.core.params import Params, check_recorded, load_params
from fvlm.core.stage import run
from fvlm.model.foveated import ModelParams
from fvlm.shards.manifest import EncodedManifest, read_manifest
from fvlm.training.data import Shards, Training
from fvlm.training.optim import TrainParams
from fvlm.training.stage import Results, folders_of, train_all
from pipeline.paths import (
    CAPTIONS,
    COARSE_ONLY,
    CURVES,
    ENCODED,
    FRAMES,
    MODEL,
    POOLED,
    TRAIN_METRICS,
    VALIDATION,
)

SHARDS = Shards(ENCODED, FRAMES, CAPTIONS)
# Of the shards that are trained on.
RECORDED = tuple(
    f"encode.{key}" for key in ("batch_frames", "compile", "dino_layers", "dtype", "layer")
)


class Sections(Params):
    """What this stage reads of params.yaml."""

    model: ModelParams
    train: TrainParams


def main() -> None:
    """Train, or go on training, and write each model when it is finished."""
    sections = load_params(Sections)

    def plan() -> list[Training]:
        recipe = read_manifest(ENCODED, EncodedManifest).recipe
        check_recorded(RECORDED, recipe, ENCODED, stage="encode")
        return list_trainings(sections)

    train_all(
        "train",
        Results(MODEL, CURVES, VALIDATION, TRAIN_METRICS),
        SHARDS,
        plan,
        max_hours=sections.train.max_hours,
    )


def list_trainings(sections: Sections) -> list[Training]:
    """The model of the first seed, then its replicates; behind them the baselines of each."""
    params = sections.train
    if sections.model.text == "answer":
        raise ParamsError("model.text: answer is what the stage instruct trains: set none")
    roots = {MODEL: 0} | ({COARSE_ONLY: 0} if params.coarse_only else {})
    roots |= {POOLED / str(count): count for count in params.pooled_tokens}
    return [
        Training(
            sections.model,
            params.model_copy(update={"seeds": [seed]}),
            coarse_only=root == COARSE_ONLY,
            pooled_tokens=pooled_tokens,
            folder=folder,
            title=" ".join(["train", *folder.relative_to(MODEL).parts]),
        )
        for root, pooled_tokens in roots.items()
        for seed, folder in folders_of(root, params.seeds).items()
    ]


if __name__ == "__main__":
    run(main, batch_key="train.batch_size")
