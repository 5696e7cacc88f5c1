"""What the instrument for answers must show: every requirement can be missed, by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fvlm.calibration.answers import TRIALS, AnswerTrial, failures
from fvlm.calibration.figures import plot_answers
from fvlm.core.document import flatten
from fvlm.statistics.quiz import ARMS, Answered, summarize

PASSING: dict[str, float] = {
    "question_control_accuracy_coarse": 0.5,
    "question_control_accuracy_fine": 0.95,
    "question_control_fine_minus_coarse": 45.0,
    "question_control_fine_minus_coarse_low": 40.0,
    "question_control_accuracy_static_in_fine": 0.51,
    "question_control_accuracy_other_question": 0.3,
    "question_control_accuracy_blind": 0.26,
    "question_control_accuracy_majority": 0.24,
    "question_control_two_passes_accuracy_coarse": 0.5,
    "question_control_two_passes_accuracy_fine": 0.95,
    "question_control_two_passes_fine_minus_coarse": 45.0,
    "question_control_two_passes_accuracy_autoregressive": 0.8,
    "question_control_accuracy_coarse_kind_one": 0.9,
    "question_control_accuracy_fine_kind_one": 0.9,
    **{
        f"question_negative_accuracy_{arm}": 0.25
        for arm in ("coarse", "fine", "static_in_fine", "other_question", "blind", "majority")
    },
    "question_after_answer_coarse_fine_ratio": 1.01,
    "preference_control_accuracy_fine": 0.9,
    "preference_control_accuracy_preferred": 0.88,
    "preference_control_preference_accuracy_preferred": 0.95,
}
EVERY_DAY = [trial for trial in TRIALS if not trial.only_all]


def test_nothing_is_missed_where_all_is_shown() -> None:
    assert failures(PASSING, EVERY_DAY) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("question_control_fine_minus_coarse", 11.9),
        ("question_control_fine_minus_coarse_low", 0.0),
        ("question_control_accuracy_static_in_fine", 0.53),
        ("question_control_accuracy_other_question", 0.5),
        ("question_control_accuracy_blind", 0.3),
        ("question_control_accuracy_majority", 0.2),
        ("question_control_two_passes_accuracy_autoregressive", 0.72),
        ("question_control_two_passes_fine_minus_coarse", 11.9),
        ("question_control_accuracy_coarse_kind_one", 0.79),
        ("question_negative_accuracy_fine", 0.3),
        ("question_after_answer_coarse_fine_ratio", 1.03),
        ("question_after_answer_coarse_fine_ratio", 0.97),
        ("preference_control_accuracy_preferred", 0.8),
        ("preference_control_preference_accuracy_preferred", 0.89),
    ],
)
def test_each_requirement_can_be_missed(name: str, value: float) -> None:
    (line,) = failures(PASSING | {name: value}, EVERY_DAY)
    assert line.startswith(f"{name} is {value:.4f}, must be ")


def test_a_figure_that_is_missing_is_not_shown() -> None:
    name = "question_after_answer_coarse_fine_ratio"
    figures: dict[str, Any] = PASSING | {name: None}
    assert failures(figures, EVERY_DAY)[0].startswith(f"{name} is undefined")
    del figures[name]
    assert failures(figures, EVERY_DAY)[0].startswith(f"{name} is missing")


def test_corpora_with_the_same_pictures_are_those_of_one() -> None:
    assert AnswerTrial("", "question_negative").pictures == "question_control"
    assert AnswerTrial("", "question_on_film").pictures == "question_on_film"


def test_the_picture_shows_every_trial(tmp_path: Path) -> None:
    asked = [
        {"group": f"video {n}", "video_id": f"video {n}", "id": str(n), "kind": "few"}
        | {"question": "Blue?", "answer": "dark", "options": ["dark", "light"]}
        for n in range(8)
    ]
    none = {arm: np.full(8, np.nan) for arm in ARMS}
    loss = {arm: np.ones(8) for arm in ARMS}
    right = {arm: (np.arange(8) % 2).astype(np.float64) for arm in ARMS}
    answered = Answered(right, loss, none, {arm: ["dark"] * 8 for arm in ARMS})
    result = summarize(asked, {0: answered}, samples=100, seed=0)
    assert flatten(result)["accuracy_fine"] == 0.5
    heights = []
    for count in (1, 3):
        path = tmp_path / f"{count}.png"
        plot_answers({f"trial_{n}": result for n in range(count)}, path)
        with Image.open(path) as picture:
            heights.append(picture.height)
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    assert heights[1] > heights[0]
