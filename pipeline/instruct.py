"""Train the model to answer questions about clips, from the model that `train` left.

Reads   data/encode/, data/decode/ (its frame size; with train.input: frames all of it),
        data/questions/, models/foveated/ (instruct.start), params.yaml:instruct, params.yaml:model,
        params.yaml:train (what instruct does not name)
Writes  models/instructed/ (the first seed's model, others in folders below), metrics/instruct.json,
        plots/instruct.csv and plots/instruct_validation.csv (of the first seed)

Loss is taken on the answer and its end, in both passes. What was trained before is handed back, and
a training that is stopped goes on, as `train` does.
"""

from pathlib import Path

from fvlm.core.errors import ParamsError
from fvlm.core.params import Params, load_params
from fvlm.core.stage import run
from fvlm.model.foveated import ModelParams
from fvlm.training.data import Asking, Shards, Training, count_questions
from fvlm.training.optim import InstructParams, TrainParams
from fvlm.training.stage import Results, folders_of, train_all
from pipeline.paths import (
    ENCODED,
    FRAMES,
    INSTRUCT_CURVES,
    INSTRUCT_METRICS,
    INSTRUCT_VALIDATION,
    INSTRUCTED,
    INSTRUCTED_AFTER,
    INSTRUCTED_POOLED,
    MODEL,
    QUESTIONS,
)

SHARDS = Shards(ENCODED, FRAMES, questions=QUESTIONS)


class Sections(Params):
    """What this stage reads of params.yaml."""

    instruct: InstructParams
    model: ModelParams
    train: TrainParams


def main() -> None:
    """Train, or go on training, and write each model when it is finished."""
    sections = load_params(Sections)
    trainings = list_trainings(sections)
    train_all(
        "instruct",
        Results(INSTRUCTED, INSTRUCT_CURVES, INSTRUCT_VALIDATION, INSTRUCT_METRICS),
        SHARDS,
        lambda: trainings,
        max_hours=sections.train.max_hours,
        counted=lambda: count_questions(trainings[0], SHARDS),
    )


def list_trainings(sections: Sections) -> list[Training]:
    """The model of the first seed and its replicates, those asked behind the video, and pooled."""
    instruct, model = sections.instruct, sections.model.model_copy(update={"text": "answer"})
    roots = {INSTRUCTED: 0} | ({INSTRUCTED_AFTER: 0} if instruct.question_after else {})
    roots |= {INSTRUCTED_POOLED / str(count): count for count in instruct.pooled_tokens}
    params = instruct.over(sections.train)
    return [
        Training(
            model,
            params.model_copy(update={"seeds": [seed], "start": start_of(instruct, root, folder)}),
            coarse_only=False,
            pooled_tokens=pooled_tokens,
            folder=folder,
            title=" ".join(["instruct", *folder.relative_to(INSTRUCTED).parts]),
            asking=Asking(
                "after" if root == INSTRUCTED_AFTER else instruct.question,
                instruct.max_text_tokens,
            ),
        )
        for root, pooled_tokens in roots.items()
        for seed, folder in folders_of(root, instruct.seeds).items()
    ]


def start_of(instruct: InstructParams, root: Path, folder: Path) -> str:
    """What a model starts from: of models/foveated its counterpart, or that of the first seed.

    Raises ParamsError where no baseline was trained there that one with pooled tokens could start
    from: arms that begin unlike each other compare nothing.
    """
    if instruct.start != str(MODEL):
        return instruct.start
    if root == INSTRUCTED_AFTER:
        root, folder = INSTRUCTED, INSTRUCTED / folder.relative_to(root)
    counterpart = MODEL / folder.relative_to(INSTRUCTED)
    if counterpart.is_dir():
        return str(counterpart)
    alike = MODEL / root.relative_to(INSTRUCTED)  # of the first seed
    if root.parent == INSTRUCTED_POOLED and not alike.is_dir():
        raise ParamsError(
            f"instruct.pooled_tokens: {root.name} starts from {alike}, which is not there: add it "
            "to train.pooled_tokens and run `dvc repro`, or set instruct.start: ''"
        )
    return str(alike)


if __name__ == "__main__":
    run(main, batch_key="instruct.batch_size")
