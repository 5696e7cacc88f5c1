"""Ask the trained models the held-out questions, with every control.

Reads   models/instructed/, models/preferred/, data/encode/, data/decode/, data/questions/,
        params.yaml:quiz
Writes  metrics/quiz.json, plots/quiz.csv (questions), plots/quiz/ (index.html, a page, and its
        pictures)
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from fvlm.clips.batch import Batch
from fvlm.clips.order import evaluated_frames, even_frames
from fvlm.clips.questions import QuestionTable, read_questions
from fvlm.clips.reader import ClipReader, Indices, open_clips, rows_of_new_footage
from fvlm.clips.tokenizer import AnswerTokenizer
from fvlm.core.device import default_device, keep_freed_memory
from fvlm.core.document import write_figures
from fvlm.core.errors import FvlmError
from fvlm.core.io import atomic_write, write_csv
from fvlm.core.params import Params, load_params
from fvlm.core.stage import run
from fvlm.evaluation.figures import write_chart
from fvlm.evaluation.quiz import ARMS, LoadRows, QuizParams, Quizzed, answer
from fvlm.model.foveated import FoveatedModel
from fvlm.model.saved import TrainedModel, load_model
from fvlm.report.answers import (
    Frames,
    accuracies_height,
    draw_accuracies,
    draw_tokens,
    picture_questions,
    render_answers,
)
from fvlm.report.cost import clip_flops
from fvlm.shards.read import open_shards
from fvlm.statistics.quiz import (
    Answered,
    Question,
    QuizResult,
    majority,
    question_rows,
    summarize,
)
from pipeline.paths import (
    ENCODED,
    FRAMES,
    INSTRUCTED,
    INSTRUCTED_AFTER,
    INSTRUCTED_POOLED,
    PREFERRED,
    QUESTIONS,
    QUIZ_BY_QUESTION,
    QUIZ_METRICS,
    QUIZ_PAGE,
    QUIZ_PLOT,
    QUIZ_TOKENS_PLOT,
)


class Sections(Params):
    """What this stage reads of params.yaml."""

    quiz: QuizParams


def main() -> None:
    """Answer, compare, and show some of the questions."""
    keep_freed_memory()
    params, device = load_params(Sections).quiz, default_device()
    model = load_model(INSTRUCTED)
    clips = open_clips(ENCODED, FRAMES, split="val", input=model.input)
    rows, questions = held_out_questions(clips, model, params)
    groups = [question["group"] for question in questions]
    quizzed = Quizzed(questions, rows, groups)
    load = load_rows(clips, model)
    guess = majority(questions, training_questions())
    runs = dict[int, Answered]()
    for folder in [INSTRUCTED, *sorted(INSTRUCTED.glob("seed-*"))]:
        seed = load_model(folder).config.seed
        runs[seed] = ask_models(folder, quizzed, load, params, device).with_arms(
            guess, {"majority": "majority"}
        )
    result = summarize(questions, runs, samples=params.bootstrap_samples, seed=params.seed)
    told = {"weights": model.config.weights_sha256[:12]}
    result = result.model_copy(update=told | costs(model, load, questions[0], rows[0]))
    write_figures(QUIZ_METRICS, result)
    keys = [clips.keys[row] for row in rows]
    write_csv(QUIZ_BY_QUESTION, list(question_rows(questions, keys, next(iter(runs.values())))))
    title = title_of(result)
    high = accuracies_height(result)
    write_chart(QUIZ_PLOT, partial(draw_accuracies, result=result), title=title, height=high)
    write_chart(QUIZ_TOKENS_PLOT, partial(draw_tokens, result=result), title=title)
    pictured = picture_questions(
        model.to(device),
        tokenizer_of(model),
        quizzed,
        next(iter(runs.values())),
        load,
        frame_reader(clips, frames_of(clips, model)),
        folder=QUIZ_PAGE,
    )
    with atomic_write(QUIZ_PAGE / "index.html") as file:
        file.write(render_answers(result, pictured).encode(errors="replace"))
    print(result.statement)


def ask_models(
    folder: Path, quizzed: Quizzed, load: LoadRows, params: QuizParams, device: torch.device
) -> Answered:
    """Every arm of one training: of the model itself, and of its counterparts."""

    def ask(source: Path, arms: Sequence[str]) -> Answered:
        model = load_model(source)
        return answer(
            model.to(device),
            tokenizer_of(model),
            quizzed,
            load,
            arms,
            batch_size=params.batch_size,
            seed=params.seed,
            device=device,
        )

    found, inside = ask(folder, ARMS), folder.relative_to(INSTRUCTED)
    others = {
        INSTRUCTED_AFTER / inside: {"coarse": "question_after_coarse", "fine": "question_after"},
        PREFERRED / inside: {"coarse": "preferred_coarse", "fine": "preferred"},
    } | {root / inside: {"coarse": f"pooled_{root.name}"} for root in INSTRUCTED_POOLED.glob("*")}
    for source, names in others.items():
        if source.is_dir():
            found = found.with_arms(ask(source, list(names)), names)
    return found


def held_out_questions(
    clips: ClipReader, model: TrainedModel, params: QuizParams
) -> tuple[list[int], list[Question]]:
    """The row of the clip of each question, and the question; of footage that is in no training
    clip, and no more than `max_questions`, evenly chosen.
    """
    trained = open_clips(ENCODED, FRAMES, split="train", input=model.input)
    new = set(rows_of_new_footage(clips, trained))
    table = read_questions(QUESTIONS, clips.keys)
    numbers = [number for number, row in enumerate(table.clips.tolist()) if row in new]
    if not numbers:
        raise FvlmError(
            f"{QUESTIONS} has no question about a held-out clip of footage of its own: give "
            "collect.source some, or collect.questions (docs/videos.md)"
        )
    most = min(params.max_questions or len(numbers), len(numbers))
    chosen = [numbers[place] for place in even_frames(stored=len(numbers), count=most)]
    return [int(table.clips[number]) for number in chosen], [table[number] for number in chosen]


def training_questions() -> Iterator[Question]:
    """All questions about training clips."""
    table: QuestionTable = read_questions(QUESTIONS, open_shards(ENCODED, split="train").keys)
    return (table[row] for row in range(len(table)))


def load_rows(clips: ClipReader, model: TrainedModel) -> LoadRows:
    """What reads clips with as many frames as the model was trained with."""
    chosen = frames_of(clips, model)

    def load(rows: Sequence[int]) -> Batch:
        return clips.read(rows, chosen)

    return load


def frames_of(clips: ClipReader, model: TrainedModel) -> Indices:
    """Which of the stored frames are read."""
    count = min(model.config.preprocessing.num_frames, clips.stored)
    return evaluated_frames(stored=clips.stored, count=count)


def frame_reader(clips: ClipReader, chosen: Indices) -> Callable[[int], Frames]:
    """What reads the chosen frames of a clip from the decode shards."""
    shards = open_shards(FRAMES, split="val")

    def read(row: int) -> Frames:
        place = shards.keys.index(clips.keys[row])
        frames: Frames = shards.read([place], fields=("frames",), frames=chosen)["frames"][0]
        return frames

    return read


def tokenizer_of(model: TrainedModel) -> AnswerTokenizer:
    """That of a model which answers; FvlmError for another one."""
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, AnswerTokenizer):
        raise FvlmError(f"{model.folder} answers no questions: `dvc repro answers/dvc.yaml` does")
    return tokenizer


def costs(
    model: TrainedModel, load: LoadRows, question: Question, row: int
) -> dict[str, dict[str, float]]:
    """Visual tokens and GFLOP of a question in the fine pass and in the arms with pooled tokens."""
    models: dict[str, FoveatedModel] = {"fine": model}
    models |= {f"pooled_{root.name}": load_model(root) for root in INSTRUCTED_POOLED.glob("*")}
    captions = tokenizer_of(model)([question["question"]], [question["answer"]])
    clip = load([row])
    batch = Batch(clip.inputs, clip.latents, clip.keys, captions)
    T = batch.latents.shape[1]
    return {
        "visual_tokens": {n: T * m.attention.tokens_per_frame for n, m in models.items()},
        "gflops": {n: clip_flops(m, batch) / 1e9 for n, m in models.items()},
    }


def title_of(result: QuizResult) -> str:
    """Of the charts: how many questions and videos."""
    verdict = result.verdict.replace("_", " ")
    return f"{result.multiple_choice} questions about {result.videos} videos: {verdict}"


if __name__ == "__main__":
    run(main, batch_key="quiz.batch_size")
