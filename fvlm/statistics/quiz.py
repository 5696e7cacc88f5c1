"""What a quiz found: accuracies of every arm on held-out questions, and what they say.

An arm is one way to answer the same question about the same clip. Its answer is the option of the
highest mean log-probability over the option's tokens and its end. All arms are compared on the
same questions; intervals come from resampling groups of clips (`ratio.py`).
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fvlm.core.document import Document
from fvlm.statistics.ratio import Array, Bootstrap, Estimate

ARMS = {
    "coarse": "coarse pass: the static query",
    "fine": "fine pass: queries predicted by the language model, which knows the question",
    "autoregressive": "fine pass frame by frame, without a coarse pass",
    "static_in_fine": "fine pass with the static query",
    "shuffled": "fine pass with another video's queries",
    "random": "fine pass with random queries",
    "other_question": "fine pass with the queries of another question about the same clip",
    "blind": "fine pass over another video's frames",
    "majority": "the most frequent answer of the kind among the training questions",
}
# Of models of their own (instruct.question_after, instruct.pooled_tokens).
OTHERS = {
    "preferred_coarse": "coarse pass after training on preferences",
    "preferred": "fine pass after training on preferences",
    "question_after_coarse": "coarse pass, the question behind the video",
    "question_after": "fine pass, the question behind the video: no query can know it",
} | {
    f"pooled_{count}": f"{count} pooled token{'s' * (count > 1)} a frame, no query"
    for count in (1, 4, 16, 49)
}
MEANINGS = ARMS | OTHERS
# What the fine pass must beat before an advantage can be put down to looking.
MUST_LOSE = (
    *("coarse", "static_in_fine", "shuffled", "random", "other_question", "blind"),
    "majority",
)
MIN_GROUPS = 6  # see verdict.py
COLUMNS = ("group", "video_id", "id", "kind", "question", "answer", "options")  # of a question

Label = Literal["worse", "inconclusive", "one_training", "validated"]
Question = Mapping[str, Any]  # as in the table of questions
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Answered:
    """By arm, one value a question, NaN where not defined: right float64 [n] (1 or 0), loss float64
    [n] of the right answer, gained float64 [n], whether that is likelier than the rejected one;
    said: the option that was chosen, "" for none.
    """

    right: dict[str, Values]
    loss: dict[str, Values]
    gained: dict[str, Values]
    said: dict[str, list[str]]

    def with_arms(self, other: "Answered", names: Mapping[str, str]) -> "Answered":
        """Also the arms `names` of another model, under new names."""

        def joined(field: str) -> dict[str, Any]:
            own, added = dict(getattr(self, field)), getattr(other, field)
            return own | {new: added[old] for old, new in names.items()}

        return Answered(*(joined(field) for field in ("right", "loss", "gained", "said")))


class ArmAnswers(Document):
    """An arm: the share of its right answers.

    balanced: mean over the right answers' words of the accuracy on each. share: of the answer that
    it gives most often. log_probability: of the right answer, mean over its tokens and end.
    preference: of questions with a rejected answer, how often the right one is the likelier.
    """

    accuracy: Annotated[Estimate, "accuracy_{}"]
    balanced: Annotated[float | None, "balanced_accuracy_{}"]
    share: Annotated[float | None, "most_frequent_answer_{}"]
    log_probability: Annotated[float | None, "log_probability_{}"]
    preference: Annotated[Estimate | None, "preference_accuracy_{}"] = None


class QuizResult(Document):
    """Held-out questions, answered by every arm.

    multiple_choice: those with options; videos, groups: of these; chance: the accuracy of a guess.
    fine_minus: the accuracy of the fine pass less that of another arm, in points.
    coarse_fine_ratio: of the mean losses of the right answers; after_ratio: the same of the model
    asked behind the video. kinds: fine less coarse, in points, by kind of question; by_kind: the
    accuracies behind them. gap_closed: (fine - coarse) / (arm - coarse) in accuracy, of arms with
    pooled tokens. visual_tokens, gflops: of a question's clip, in arms whose cost is compared.
    weights: the first digits of the sha256 of those that answered, of the first training.
    """

    verdict: Label
    statement: str
    questions: int
    multiple_choice: int
    videos: int
    groups: int
    seeds: int
    chance: float | None
    arms: dict[str, ArmAnswers]
    fine_minus: Annotated[dict[str, Estimate], "fine_minus_{}"]
    coarse_fine_ratio: Annotated[Estimate, "answer_coarse_fine_ratio"]
    after_ratio: Annotated[Estimate | None, "question_after_coarse_fine_ratio"] = None
    kinds: Annotated[dict[str, Estimate], "fine_minus_coarse_kind_{}"] = Field(default_factory=dict)
    by_kind: Annotated[dict[str, float], "accuracy_{}"] = Field(default_factory=dict)
    gap_closed: Annotated[dict[str, Estimate], "{}_gap_closed"] = Field(default_factory=dict)
    visual_tokens: Annotated[dict[str, int], "visual_tokens_{}"] = Field(default_factory=dict)
    gflops: Annotated[dict[str, float], "gflops_{}"] = Field(default_factory=dict)
    weights: str = ""


def summarize(
    questions: Sequence[Question], runs: Mapping[int, Answered], *, samples: int, seed: int
) -> QuizResult:
    """What the trainings `runs`, by seed, answered to the same questions."""
    every = list(questions) * len(runs)
    groups = [question["group"] for question in every]
    replicates = np.repeat(list(runs), len(questions)).tolist()
    bootstrap = Bootstrap(groups, samples, seed, replicates)
    right, loss, gained = (_joined(runs, field) for field in ("right", "loss", "gained"))
    said = {arm: [word for run in runs.values() for word in run.said[arm]] for arm in right}
    words = [question["answer"] for question in every]

    def minus(arm: str, rows: NDArray[np.bool_] | None = None) -> Estimate:
        first, second = 100 * right["fine"], 100 * right[arm]
        if rows is not None:
            first = np.where(rows[:, None], first, np.nan)
        return bootstrap.difference(first, second)

    arms = {
        arm: ArmAnswers(
            accuracy=bootstrap.difference(right[arm], np.zeros_like(right[arm])),
            balanced=_balanced(right[arm][:, 0], words),
            share=_most_frequent(said[arm]),
            log_probability=_mean(-loss[arm]),
            preference=bootstrap.difference(gained[arm], np.zeros_like(gained[arm]))
            if np.isfinite(gained[arm]).any()
            else None,
        )
        for arm in MEANINGS
        if arm in right
    }
    fine_minus = {arm: minus(arm) for arm in arms if arm != "fine"}
    kinds = {question["kind"] for question in every} - {""}
    chosen = [question for question in questions if question["options"]]
    size = len({question["group"] for question in chosen})
    result = QuizResult(
        verdict=_decide(fine_minus, groups=size, seeds=len(runs)),
        statement="",
        questions=len(questions),
        multiple_choice=len(chosen),
        videos=len({question["video_id"] for question in chosen}),
        groups=size,
        seeds=len(runs),
        chance=float(np.mean([1 / len(asked["options"]) for asked in chosen])) if chosen else None,
        arms=arms,
        fine_minus=fine_minus,
        coarse_fine_ratio=bootstrap.ratio(loss["coarse"], loss["fine"]),
        after_ratio=bootstrap.ratio(loss["question_after_coarse"], loss["question_after"])
        if "question_after" in loss
        else None,
        kinds={
            kind: minus("coarse", np.asarray([question["kind"] == kind for question in every]))
            for kind in sorted(kinds)
        },
        by_kind={
            f"{arm}_kind_{kind}": value
            for kind in sorted(kinds)
            for arm in ("coarse", "fine")
            if (value := _mean(right[arm][[asked["kind"] == kind for asked in every]])) is not None
        },
        gap_closed={
            arm: bootstrap.share(right["fine"] - right["coarse"], right[arm] - right["coarse"])
            for arm in right
            if arm.startswith("pooled_")
        },
    )
    return result.model_copy(update={"statement": describe(result)})


def majority(asked: Sequence[Question], trained: Iterable[Question]) -> Answered:
    """The arm `majority`: among the options the most frequent answer to training questions of the
    kind; not defined without options.
    """
    counts = defaultdict[str, Counter[str]](Counter)
    for question in trained:
        counts[question["kind"]][question["answer"]] += 1
    said = [
        max(question["options"], key=counts[question["kind"]].__getitem__, default="")
        for question in asked
    ]
    right = [
        float(word == question["answer"]) if word else np.nan
        for word, question in zip(said, asked, strict=True)
    ]
    none = {"majority": np.full(len(said), np.nan)}
    return Answered({"majority": np.asarray(right)}, none, none, {"majority": said})


def question_rows(
    questions: Sequence[Question], keys: Sequence[str], run: Answered
) -> Iterator[dict[str, Any]]:
    """Rows of plots/quiz.csv: each question, with what every arm said, its loss of the right answer
    and whether that was likelier than the rejected one.
    """
    for number, (question, key) in enumerate(zip(questions, keys, strict=True)):
        row = {"key": key} | {name: question[name] for name in COLUMNS}
        row["options"] = json.dumps(question["options"], ensure_ascii=False)
        for field in ("said", "loss", "gained"):
            for arm, values in getattr(run, field).items():
                value = values[number]
                row[f"{field}_{arm}"] = None if value != value else value  # NaN stays empty
        yield row


def read_question_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Question], Answered]:
    """The questions and answers that `question_rows` told of."""
    table = list(rows)
    questions: list[Question] = [
        {name: row[name] or "" for name in COLUMNS} | {"options": json.loads(row["options"])}
        for row in table
    ]
    arms = [name.removeprefix("said_") for name in table[0] if name.startswith("said_")]

    def values(field: str) -> dict[str, Values]:
        return {
            arm: np.asarray([float(row[f"{field}_{arm}"] or "nan") for row in table])
            for arm in arms
        }

    said = {arm: [str(row[f"said_{arm}"] or "") for row in table] for arm in arms}
    right = {
        arm: np.asarray(
            [
                float(word == row["answer"]) if word else np.nan
                for word, row in zip(words, table, strict=True)
            ]
        )
        for arm, words in said.items()
    }
    return questions, Answered(right, values("loss"), values("gained"), said)


def _joined(runs: Mapping[int, Answered], field: str) -> dict[str, Array]:
    """Values [n,1] of all trainings by arm; of arms that each training has."""
    by_run = [getattr(run, field) for run in runs.values()]
    return {
        arm: np.concatenate([values[arm] for values in by_run])[:, None]
        for arm in by_run[0]
        if all(arm in values for values in by_run)
    }


def _mean(values: Array) -> float | None:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else None


def _balanced(right: Values, words: Sequence[str]) -> float | None:
    answers, defined = np.asarray(words), np.isfinite(right)
    by_word = [right[(answers == word) & defined].mean() for word in sorted(set(answers[defined]))]
    return float(np.mean(by_word)) if by_word else None


def _most_frequent(said: Sequence[str]) -> float | None:
    given = Counter(word for word in said if word)
    return max(given.values()) / given.total() if given else None


def _decide(fine_minus: Mapping[str, Estimate], *, groups: int, seeds: int) -> Label:
    """Validated only where the fine pass beats the coarse one and every control."""
    coarse = fine_minus["coarse"]
    if groups < MIN_GROUPS:
        return "inconclusive"
    if coarse.high is not None and coarse.high < 0:
        return "worse"
    if unbeaten(fine_minus):
        return "inconclusive"
    return "validated" if seeds > 1 else "one_training"


def unbeaten(fine_minus: Mapping[str, Estimate]) -> list[str]:
    """What the fine pass is not shown to beat: the interval of its lead is not above 0."""
    return [arm for arm in MUST_LOSE if arm in fine_minus and not (fine_minus[arm].low or 0) > 0]


def in_points(estimate: Estimate) -> str:
    """A difference and its interval, in words."""
    if estimate.value is None:
        return "undefined"
    ends = "no interval: that takes at least 2 groups of videos"
    if estimate.low is not None and estimate.high is not None:
        ends = f"95% interval {estimate.low:+.1f} to {estimate.high:+.1f}"
    return f"{estimate.value:+.1f} points ({ends})"


def describe(found: QuizResult) -> str:
    """The result in one sentence."""
    coarse, fine = (found.arms[name].accuracy.value for name in ("coarse", "fine"))
    if coarse is None or fine is None:
        return "Inconclusive: no held-out question has options to choose from."
    remaining = [MEANINGS[arm] for arm in unbeaten(found.fine_minus)]
    parts = [
        f"{found.verdict.replace('_', ' ').capitalize()}: of {found.multiple_choice} questions "
        f"about {found.videos} videos the coarse pass answers {coarse:.1%}, the fine pass "
        f"{fine:.1%} (chance {found.chance:.1%}): {in_points(found.fine_minus['coarse'])}",
        f"the fine pass is not shown to beat: {', '.join(remaining)}"
        if remaining
        else "the fine pass beats every control",
    ]
    if found.groups < MIN_GROUPS:
        parts.append(f"a verdict takes at least {MIN_GROUPS} groups of videos")
    if found.seeds == 1:
        parts.append("one training: another seed may say otherwise")
    return "; ".join(parts) + "."
