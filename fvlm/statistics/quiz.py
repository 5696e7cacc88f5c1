"""What a quiz found: accuracies of every arm on held-out questions, and what they say.

An arm is one way to answer the same question about the same clip. Its answer is the option of the
highest mean log-probability over the option's tokens and its end. All arms are compared on the
same questions; intervals come from resampling groups of clips (`ratio.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fvlm.core.document import Document
from fvlm.statistics.ratio import UNDEFINED, Array, Bootstrap, Estimate

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
    "coarse",
    "static_in_fine",
    "shuffled",
    "random",
    "other_question",
    "blind",
    "majority",
)
MIN_GROUPS = 6  # see verdict.py

Label = Literal["worse", "inconclusive", "one_training", "validated"]
Answers = dict[str, Array]  # float64 [questions,1] by arm: 1 right, 0 wrong, NaN not defined


class ArmAnswers(Document):
    """An arm: the share of its right answers, and that of the fine pass less its own, in points.

    balanced: mean over the right answers' words of the accuracy on each. share: of the answer that
    it gives most often. questions: of how many.
    """

    accuracy: Annotated[Estimate, "accuracy_{}"]
    fine_minus: Annotated[Estimate, "fine_minus_{}"] = UNDEFINED
    balanced: Annotated[float | None, "balanced_accuracy_{}"] = None
    share: Annotated[float | None, "most_frequent_answer_{}"] = None
    questions: Annotated[int, "questions_{}"] = 0


class QuizResult(Document):
    """Held-out questions, answered by every arm.

    chance: the accuracy of a guess. coarse_fine_ratio: of the mean losses of the right answers;
    after_ratio: the same of the model asked behind the video. kinds: fine less coarse by kind of
    question. gap_closed: (fine - coarse) / (arm - coarse) in accuracy, of arms with pooled tokens.
    gained: of questions with a rejected answer, in how many the right one is the more likely, by
    pass; chosen: its mean log-probability.
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
    coarse_fine_ratio: Annotated[Estimate, "answer_coarse_fine_ratio"]
    loss_coarse: Annotated[float, "answer_loss_coarse"]
    loss_fine: Annotated[float, "answer_loss_fine"]
    after_ratio: Annotated[Estimate | None, "question_after_coarse_fine_ratio"] = None
    kinds: Annotated[dict[str, Estimate], "fine_minus_coarse_kind_{}"] = Field(default_factory=dict)
    gap_closed: Annotated[dict[str, float | None], "{}_gap_closed"] = Field(default_factory=dict)
    gained: Annotated[dict[str, Estimate], "preference_accuracy_{}"] = Field(default_factory=dict)
    chosen: Annotated[dict[str, float], "chosen_log_probability_{}"] = Field(default_factory=dict)
    weights: str = ""

    def minus(self, arm: str) -> Estimate:
        """The fine pass's accuracy less that of an arm, in points."""
        return self.arms[arm].fine_minus if arm in self.arms else UNDEFINED


def points(bootstrap: Bootstrap, right: Array, other: Array) -> Estimate:
    """100 times the difference of two accuracies on the questions that both define."""
    return bootstrap.difference(100 * right, 100 * other)


def balanced(right: Array, words: Sequence[str]) -> float | None:
    """Mean over the words that are right answers of the accuracy on each."""
    answers, defined = np.asarray(words), np.isfinite(right[:, 0])
    by_word = [right[(answers == word) & defined].mean() for word in sorted(set(answers[defined]))]
    return float(np.mean(by_word)) if by_word else None


def most_frequent(said: NDArray[np.str_]) -> float | None:
    """The share of the answer that is given most often; "" is none."""
    given = said[said != ""]
    return float(np.unique(given, return_counts=True)[1].max() / len(given)) if len(given) else None


def decide(found: Mapping[str, ArmAnswers], *, groups: int, seeds: int) -> Label:
    """Validated only where the fine pass beats the coarse one and every control."""
    against = [found[arm].fine_minus for arm in MUST_LOSE if arm in found]
    coarse = found["coarse"].fine_minus
    if groups < MIN_GROUPS:
        return "inconclusive"
    if coarse.high is not None and coarse.high < 0:
        return "worse"
    if not all(is_above(estimate) for estimate in against):
        return "inconclusive"
    return "validated" if seeds > 1 else "one_training"


def is_above(points_: Estimate) -> bool:
    """Whether the whole interval of a difference is above 0."""
    return points_.low is not None and points_.low > 0


def unbeaten(found: Mapping[str, ArmAnswers]) -> list[str]:
    """What the fine pass is not shown to beat."""
    return [arm for arm in MUST_LOSE if arm in found and not is_above(found[arm].fine_minus)]


def in_points(estimate: Estimate) -> str:
    """A difference and its interval, in words."""
    if estimate.value is None:
        return "undefined"
    ends = (
        "no interval"
        if estimate.low is None
        else f"95% interval {estimate.low:+.1f} to {estimate.high:+.1f}"
    )
    return f"{estimate.value:+.1f} points ({ends})"


def describe(found: QuizResult) -> str:
    """The result in one sentence."""
    coarse, fine = (found.arms[name].accuracy.value for name in ("coarse", "fine"))
    if coarse is None or fine is None:
        return "Inconclusive: no held-out question has options to choose from."
    label = found.verdict.replace("_", " ").capitalize()
    remaining = [MEANINGS[arm] for arm in unbeaten(found.arms)]
    beats = (
        "the fine pass beats every control"
        if not remaining
        else f"the fine pass is not shown to beat: {'; '.join(remaining)}"
    )
    few = f"; a verdict takes at least {MIN_GROUPS} groups of videos" * (found.groups < MIN_GROUPS)
    alone = "; one training: another seed may say otherwise" * (found.seeds == 1)
    return (
        f"{label}: of {found.multiple_choice} questions about {found.videos} videos the coarse pass"
        f" answers {coarse:.1%}, the fine pass {fine:.1%}: {in_points(found.minus('coarse'))}; "
        f"{beats}{few}{alone}."
    )
