"""Train the model that answers on preferences: of two answers, which one is better (DPO).

Reads   data/encode/, data/decode/ (its frame size; with train.input: frames all of it),
        data/questions/ (those with a `rejected` answer), models/instructed/, params.yaml:prefer,
        params.yaml:instruct and params.yaml:train (what prefer does not name), params.yaml:model
Writes  models/preferred/ (the first seed's model, others in folders below), metrics/prefer.json,
        plots/prefer.csv (of the first seed)

Each pass is held to the same pass of the model before. What was trained before is handed back, and
a training that is stopped goes on, as `train` does.
"""

from fvlm.core.params import Params, load_params
from fvlm.core.stage import run
from fvlm.model.foveated import ModelParams
from fvlm.training.data import Asking, Shards, Training, count_questions
from fvlm.training.optim import InstructParams, PreferParams, TrainParams
from fvlm.training.stage import Results, folders_of, train_all
from pipeline.paths import (
    ENCODED,
    FRAMES,
    INSTRUCTED,
    PREFER_CURVES,
    PREFER_METRICS,
    PREFERRED,
    QUESTIONS,
)

SHARDS = Shards(ENCODED, FRAMES, questions=QUESTIONS)


class Sections(Params):
    """What this stage reads of params.yaml."""

    instruct: InstructParams
    model: ModelParams
    prefer: PreferParams
    train: TrainParams


def main() -> None:
    """Train, or go on training, and write each model when it is finished."""
    sections = load_params(Sections)
    trainings = list_trainings(sections)
    train_all(
        "prefer",
        Results(PREFERRED, PREFER_CURVES, None, PREFER_METRICS),
        SHARDS,
        lambda: trainings,
        max_hours=sections.train.max_hours,
        counted=lambda: count_questions(trainings[0], SHARDS),
    )


def list_trainings(sections: Sections) -> list[Training]:
    """From each instructed model, one with preferences."""
    instruct, prefer = sections.instruct, sections.prefer
    params = prefer.over(instruct.over(sections.train))
    starts = folders_of(INSTRUCTED, instruct.seeds)
    return [
        Training(
            sections.model.model_copy(update={"text": "answer"}),
            params.model_copy(update={"seeds": [seed], "start": str(starts[seed])}),
            coarse_only=False,
            folder=folder,
            title=" ".join(["prefer", *folder.relative_to(PREFERRED).parts]),
            asking=Asking(instruct.question, instruct.max_text_tokens, rejected=True),
            prefer=prefer,
        )
        for seed, folder in folders_of(PREFERRED, instruct.seeds).items()
    ]


if __name__ == "__main__":
    run(main, batch_key="prefer.batch_size")
