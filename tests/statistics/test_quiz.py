"""What a quiz says, of answers that are made up."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvlm.core.document import flatten
from fvlm.core.io import read_csv, write_csv
from fvlm.statistics.quiz import (
    COLUMNS,
    MEANINGS,
    MUST_LOSE,
    Answered,
    Question,
    QuizResult,
    majority,
    question_rows,
    read_question_rows,
    summarize,
    unbeaten,
)
from tests.questions import question

GROUPS, EACH = 8, 4
OPTIONS = ["red", "blue", "green", "grey"]
NAN = float("nan")
LOSSES = {"fine": 0.5, "coarse": 1.0, "question_after": 2.0, "question_after_coarse": 3.0}


def asked(groups: int = GROUPS) -> list[Question]:
    """Of each group 4 questions, of two kinds; the right answer is red or blue in turns."""
    return [
        question(
            f"clip-{group}",
            number,
            group=f"film {group}",
            answer=OPTIONS[number % 2],
            options=OPTIONS,
            kind=("colour", "place")[number // 2],
        )
        for group in range(groups)
        for number in range(EACH)
    ]


def changed(**values: Callable[[int], Any]) -> list[Question]:
    """The same with other values, by the number of the question."""
    return [
        {**one, **{name: value(number) for name, value in values.items()}}
        for number, one in enumerate(asked())
    ]


def answers(questions: list[Question], **right: list[float]) -> Answered:
    """right: of an arm, whether it is, for the questions of a group; the others are never right."""
    repeated = {arm: right.get(arm, [0.0] * EACH) for arm in (*MUST_LOSE, "fine", *right)}
    groups = len(questions) // EACH
    by_arm = {arm: np.tile(np.asarray(values, float), groups) for arm, values in repeated.items()}
    return Answered(
        right=by_arm,
        loss={
            arm: np.full(len(questions), LOSSES.get(arm, 4.0))
            if arm != "majority"
            else values * NAN
            for arm, values in by_arm.items()
        },
        gained={arm: np.full(len(questions), NAN) for arm in by_arm},
        said={
            arm: [
                "" if value != value else one["answer"] if value else "grey"
                for one, value in zip(questions, values, strict=True)
            ]
            for arm, values in by_arm.items()
        },
    )


def judged(
    questions: list[Question] | None = None, *, seeds: int = 2, **right: list[float]
) -> QuizResult:
    questions = questions or asked()
    runs = dict.fromkeys(range(seeds), answers(questions, **right))
    return summarize(questions, runs, samples=200, seed=0)


ALL, HALF = [1.0, 1, 1, 1], [1.0, 1, 0, 0]


def test_accuracies_and_what_the_fine_pass_is_ahead_by_in_points() -> None:
    found = judged(fine=[1, 1, 1, 0], coarse=[1, 0, 0, 0], blind=[1, 1, 0, 0])
    arms = found.arms
    assert {arm: arms[arm].accuracy.value for arm in ("fine", "coarse", "blind", "random")} == {
        "fine": 0.75,
        "coarse": 0.25,
        "blind": 0.5,
        "random": 0.0,
    }
    for arm, points in (("coarse", 50), ("blind", 25), ("random", 75)):
        assert found.fine_minus[arm].value == pytest.approx(points)
    assert set(found.fine_minus) == set(arms) - {"fine"}
    assert (found.questions, found.multiple_choice, found.videos, found.groups) == (32, 32, 8, 8)
    assert found.coarse_fine_ratio.value == pytest.approx(2.0)
    assert found.after_ratio is None
    assert arms["fine"].log_probability == pytest.approx(-0.5)
    assert arms["majority"].log_probability is None
    assert list(arms) == [arm for arm in MEANINGS if arm in arms]


def test_a_difference_is_paired_and_its_interval_over_groups() -> None:
    """Only of questions that both answer; every group alike leaves no width."""
    found = judged(fine=[1, 1, 0, 0], other_question=[NAN, 1, 0, NAN])
    assert found.arms["other_question"].accuracy.value == pytest.approx(0.5)
    assert found.fine_minus["other_question"].value == pytest.approx(0.0)  # of these two
    fewer = judged(fine=[1, 1, 0, 0], other_question=[NAN, NAN, 0, 0]).fine_minus["other_question"]
    assert fewer.value == pytest.approx(0.0)
    assert (fewer.low, fewer.high) == (0.0, 0.0)
    questions = asked()
    run = answers(questions, fine=ALL)
    run.right["fine"][: GROUPS * EACH // 2] = 0.0  # of half of the groups
    spread = summarize(questions, {0: run}, samples=200, seed=0).fine_minus["coarse"]
    assert spread.value == pytest.approx(50)
    error = 100 * 0.5 / np.sqrt(GROUPS - 1)
    assert spread.high == pytest.approx(50 + 2.3646 * error, rel=1e-3)  # Student's t of 7
    assert spread.low == pytest.approx(50 - 2.3646 * error, rel=1e-3)


def test_chance_balance_and_the_most_frequent_answer() -> None:
    """An arm that always says the same is found out, whatever the answers happen to be."""
    questions = changed(answer=lambda number: "blue" if number % EACH == 1 else "red")
    questions[0] = {**questions[0], "options": ["red", "blue"]}
    run = answers(questions, fine=[1, 0, 1, 1], coarse=ALL)
    run.said["fine"] = ["red"] * len(questions)
    found = summarize(questions, {0: run}, samples=200, seed=0)
    assert found.chance == pytest.approx((31 / 4 + 1 / 2) / 32)
    fine, coarse = found.arms["fine"], found.arms["coarse"]
    assert fine.accuracy.value == 0.75
    assert (fine.balanced, fine.share) == (0.5, 1.0)
    assert (coarse.balanced, coarse.share) == (1.0, 0.75)


def test_kinds_apart() -> None:
    found = judged(fine=[1, 1, 1, 0], coarse=[1, 0, 0, 0])
    assert {kind: value.value for kind, value in found.kinds.items()} == {
        "colour": pytest.approx(50),
        "place": pytest.approx(50),
    }
    assert found.by_kind == {
        "coarse_kind_colour": 0.5,
        "fine_kind_colour": 1.0,
        "coarse_kind_place": 0.0,
        "fine_kind_place": 0.5,
    }
    flat = flatten(found)
    assert flat["accuracy_fine_kind_colour"] == 1.0
    assert flat["fine_minus_coarse_kind_place"] == pytest.approx(50)
    assert not judged(changed(kind=lambda _: "")).kinds


def test_how_much_of_the_gap_the_fine_pass_closes() -> None:
    found = judged(fine=HALF, coarse=[0, 0, 0, 0], pooled_4=ALL, pooled_1=[0, 0, 0, 0])
    assert found.gap_closed["pooled_4"].value == pytest.approx(0.5)
    assert found.gap_closed["pooled_1"].value is None  # there is none
    assert flatten(found)["pooled_4_gap_closed"] == pytest.approx(0.5)


def test_the_question_behind_the_video_has_a_ratio_of_its_own() -> None:
    found = judged(fine=ALL, question_after=HALF, question_after_coarse=HALF)
    assert found.after_ratio is not None
    assert found.after_ratio.value == pytest.approx(1.5)


def test_how_often_the_right_answer_is_likelier_than_the_rejected_one() -> None:
    questions = asked()
    run = answers(questions, fine=ALL)
    run.gained["fine"][:4] = [1, 1, 1, 0]
    found = summarize(questions, {0: run}, samples=200, seed=0)
    preference = found.arms["fine"].preference
    assert preference is not None
    assert preference.value == 0.75
    assert found.arms["coarse"].preference is None
    assert flatten(found)["preference_accuracy_fine"] == 0.75


def test_only_what_is_asked_with_options_counts_as_a_group() -> None:
    """Two groups of eight have none: the six others are just enough for a verdict."""
    for without, verdict in ((2, "validated"), (3, "inconclusive")):
        questions = asked()
        for number in range(without * EACH):
            questions[number] = {**questions[number], "options": []}
        run = answers(questions, **BEATEN)
        for values in run.right.values():
            values[: without * EACH] = NAN
        found = summarize(questions, {0: run, 1: run}, samples=200, seed=0)
        assert found.groups == found.videos == GROUPS - without
        assert (found.questions, found.multiple_choice) == (32, 32 - without * EACH)
        assert found.verdict == verdict


def test_without_options_nothing_is_decided() -> None:
    questions = changed(options=lambda _: [])
    nothing: dict[str, Any] = dict.fromkeys((*MUST_LOSE, "fine"), [NAN] * EACH)
    found = judged(questions, **nothing)
    assert (found.verdict, found.chance, found.multiple_choice) == ("inconclusive", None, 0)
    assert found.statement == "Inconclusive: no held-out question has options to choose from."
    assert found.arms["fine"].accuracy.value is None
    assert found.coarse_fine_ratio.value == pytest.approx(2.0)


BEATEN: dict[str, Any] = {"fine": [1, 1, 1, 0]}


@pytest.mark.parametrize(
    ("groups", "seeds", "right", "verdict"),
    [
        (8, 2, BEATEN, "validated"),
        (8, 1, BEATEN, "one_training"),
        (6, 2, BEATEN, "validated"),
        (5, 2, BEATEN, "inconclusive"),
        (8, 2, {"fine": [0, 0, 0, 0]}, "inconclusive"),
        (8, 2, {"coarse": [1, 0, 0, 0]}, "worse"),
        (5, 2, {"coarse": [1, 0, 0, 0]}, "inconclusive"),
        *((8, 2, BEATEN | {arm: [1, 1, 1, 0]}, "inconclusive") for arm in MUST_LOSE),
        *((8, 2, BEATEN | {arm: [NAN] * 4}, "inconclusive") for arm in MUST_LOSE),
        (8, 2, BEATEN | {"autoregressive": ALL, "pooled_4": ALL}, "validated"),
    ],
)
def test_the_verdict(groups: int, seeds: int, right: dict[str, Any], verdict: str) -> None:
    found = judged(asked(groups), seeds=seeds, **right)
    assert found.verdict == verdict
    if "coarse" in right and right["coarse"][0] != right["coarse"][0]:
        return  # nothing to tell
    assert found.statement.startswith(verdict.replace("_", " ").capitalize())
    assert ("a verdict takes at least 6 groups" in found.statement) == (groups < 6)
    assert ("another seed may say otherwise" in found.statement) == (seeds == 1)
    left = unbeaten(found.fine_minus)
    assert ("the fine pass beats every control" in found.statement) == (not left)
    assert all(MEANINGS[arm] in found.statement.split("not shown to beat: ")[1] for arm in left)


def test_a_lead_that_may_be_none_beats_nothing() -> None:
    questions = asked()
    run = answers(questions, **BEATEN)
    run.right["shuffled"][:] = run.right["fine"]
    run.right["shuffled"][:2] = 0.0  # of one group alone
    found = summarize(questions, {0: run, 1: run}, samples=200, seed=0)
    ahead = found.fine_minus["shuffled"]
    assert ahead.value is not None
    assert ahead.low is not None
    assert ahead.value > 0 > ahead.low
    assert unbeaten(found.fine_minus) == ["shuffled"]


def test_the_most_frequent_training_answer_of_the_kind_among_the_options() -> None:
    trained = [
        *(question("a", answer="blue", kind="colour") for _ in range(3)),
        *(question("a", answer="green", kind="place") for _ in range(2)),
        *(question("a", answer="grey", kind="place") for _ in range(5)),
        question("a", answer="red", kind="colour"),
    ]
    held_out = [
        question("b", options=OPTIONS, answer="blue", kind="colour"),
        question("b", options=["red", "green"], answer="red", kind="place"),
        question("b", options=OPTIONS, answer="red", kind="unheard of"),
        question("b", options=[], kind="colour"),
    ]
    found = majority(held_out, trained)
    assert found.said["majority"] == ["blue", "green", "red", ""]
    np.testing.assert_equal(found.right["majority"], [1, 0, 1, NAN])
    assert np.isnan(found.loss["majority"]).all()


def test_arms_of_another_model_come_beside() -> None:
    questions = asked()
    one, other = answers(questions, fine=ALL), answers(questions, coarse=HALF)
    found = one.with_arms(other, {"coarse": "pooled_4"})
    assert found.right["pooled_4"] is other.right["coarse"]
    assert found.said["fine"] == one.said["fine"]
    assert "pooled_4" not in one.right


def test_a_table_of_the_questions_gives_the_same_figures_again(tmp_path: Path) -> None:
    questions = changed(kind=lambda number: "" if number % 3 else "colour")
    questions[3] = {**questions[3], "options": [], "question": 'wo, "dort"?\nStraße'}
    run = answers(questions, fine=[1, 1, 0, 1], coarse=[1, 0, 0, 0], other_question=[NAN, 0, 1, 0])
    for arm in run.right:
        run.right[arm][3], run.said[arm][3] = NAN, ""
    run.loss["fine"][:2] = 0.0, 1 / 3
    run.gained["fine"][:4] = [1, 0, NAN, 1]
    keys = [one["key"] for one in questions]
    write_csv(tmp_path / "quiz.csv", list(question_rows(questions, keys, run)))
    rows = read_csv(tmp_path / "quiz.csv")
    assert [row["key"] for row in rows] == keys
    read, again = read_question_rows(rows)
    assert read == [{name: one[name] for name in COLUMNS} for one in questions]
    assert again.said == run.said
    for field in ("right", "loss", "gained"):
        for arm, values in getattr(run, field).items():
            np.testing.assert_equal(getattr(again, field)[arm], values, err_msg=f"{field} {arm}")
    first, second = (
        summarize(asked_of, {0: told}, samples=200, seed=0)
        for asked_of, told in ((questions, run), (read, again))
    )
    assert second == first
