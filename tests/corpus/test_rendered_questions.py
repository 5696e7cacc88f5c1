"""Answers of control corpora are what the pictures show, or nothing but chance."""

import json

import numpy as np
import pytest

from fvlm.corpus.controls import ASKING, RENDERED, AskingCorpus, RenderedCorpus
from fvlm.corpus.questions import Question
from fvlm.corpus.rendered_questions import BRIGHTNESS, ask
from fvlm.corpus.rendered_scenes import (
    CELL,
    HUES,
    LEVELS,
    MARKER,
    STATES,
    Picture,
    hue_colour,
    make_scene,
    pictures,
)

CLIPS = 2000


def hue_of(question: str) -> int:
    """The one hue that a question names."""
    (hue,) = (hue for hue, name in enumerate(HUES) if question == f"{name.capitalize()}?")
    return hue


def marker_level(picture: Picture, hue: int) -> int:
    """Level of the marker inside the square of a hue, found by its colour [P,P,3]."""
    near = abs(picture / 255 - hue_colour(hue)).max(axis=2) < 0.01
    rows, columns = np.nonzero(near)
    top, left = round(rows.mean() - MARKER / 2 + 0.5), round(columns.mean() - MARKER / 2 + 0.5)
    marker = picture[top : top + MARKER, left : left + MARKER]
    assert np.ptp(marker) == 0  # all of it, and nothing else
    return round(float(marker.mean()) / 255 * (LEVELS - 1))


@pytest.mark.parametrize("corpus", RENDERED)
def test_questions_are_a_function_of_corpus_number_and_seed(corpus: RenderedCorpus) -> None:
    def asked(number: int, seed: int) -> str:
        return json.dumps(ask(corpus, number, seed=seed))

    assert asked(5, 0) == asked(5, 0)
    if corpus in ASKING:
        assert len({asked(5, 0), asked(6, 0), asked(5, 1)}) == 3
        for number in range(100):
            for row in ask(corpus, number, seed=0):
                assert Question.model_validate(row).options == list(row["options"])
    else:
        assert asked(5, 0) == "[]"


def test_an_answer_is_what_the_last_picture_shows() -> None:
    """One question for each square; the picture before the last one would answer otherwise."""
    earlier = []
    for number in range(40):
        shown = pictures("question_control", number, seed=3)
        questions = ask("question_control", number, seed=3)
        hues = [hue_of(row["question"]) for row in questions]
        assert sorted(hues) == sorted(make_scene("question_control", number, seed=3).hues)
        for hue, row in zip(hues, questions, strict=True):
            assert row["answer"] == BRIGHTNESS[marker_level(shown[STATES - 1], hue)]
            earlier.append(row["answer"] == BRIGHTNESS[marker_level(shown[STATES - 2], hue)])
    assert np.mean(earlier) == pytest.approx(1 / LEVELS, abs=0.1)


def test_the_coin_knows_nothing_of_the_picture() -> None:
    """Answer and marker of the same question: every pair of levels is as frequent as another."""
    pairs = np.zeros((LEVELS, LEVELS))
    for number in range(CLIPS):
        shown, coins = (
            ask(corpus, number, seed=0) for corpus in ("question_control", "question_negative")
        )
        for right, coin in zip(shown, coins, strict=True):
            assert coin | {"answer": right["answer"]} == right
            pairs[BRIGHTNESS.index(right["answer"]), BRIGHTNESS.index(coin["answer"])] += 1
    chi_square = ((pairs - pairs.mean()) ** 2 / pairs.mean()).sum()
    assert chi_square < 30.6  # 15 degrees of freedom: 1% of fair coins are above
    assert pairs.sum() > 3 * CLIPS


@pytest.mark.parametrize("corpus", ["question_negative", "question_on_film", "preference_control"])
def test_corpora_that_ask_of_one_marker_show_the_same_sprites(corpus: AskingCorpus) -> None:
    for number in range(3):
        shown, again = (pictures(name, number, seed=0) for name in ("question_control", corpus))
        np.testing.assert_array_equal(shown, again)


def test_on_film_the_same_is_asked_and_answered() -> None:
    for number in range(100):
        shown, on_film = (
            ask(corpus, number, seed=0) for corpus in ("question_control", "question_on_film")
        )
        assert shown == on_film


def test_a_rejected_answer_is_wrong_or_longer() -> None:
    """Half of the clips have the one, half the other; all else is as in question_control."""
    kinds, wrong = [], np.zeros((LEVELS, LEVELS))
    for number in range(CLIPS):
        rows = ask("preference_control", number, seed=0)
        for row, plain in zip(rows, ask("question_control", number, seed=0), strict=True):
            assert row | {"kind": plain["kind"]} == plain | {"rejected": row["rejected"]}
            assert row["rejected"] != row["answer"]
            if row["kind"] == "wrong":
                wrong[BRIGHTNESS.index(row["answer"]), BRIGHTNESS.index(row["rejected"])] += 1
            else:
                assert row["rejected"] == f"it is {row['answer']}"
        (kind,) = {row["kind"] for row in rows}
        kinds.append(kind)
    assert (kinds.count("wrong"), kinds.count("style")) == (CLIPS / 2, CLIPS / 2)
    others = wrong[~np.eye(LEVELS, dtype=bool)]
    assert abs(others / others.mean() - 1).max() < 0.25  # each wrong level is as frequent


def test_easy_questions_ask_what_every_picture_shows() -> None:
    """The number of squares, found by colour; the tint, found on the borders between cells."""
    for number in range(40):
        shown = np.array(pictures("question_easy", number, seed=1)) / 255
        count, tint = ask("question_easy", number, seed=1)
        near = [abs(shown[-1] - hue_colour(hue)).max(axis=2) < 0.01 for hue in range(len(HUES))]
        assert count["answer"] == count["options"][sum(mask.sum() > 100 for mask in near) - 1]
        colour = shown[:, ::CELL].mean(axis=(0, 1, 2))
        like = [hue_colour(HUES.index(name)) for name in tint["options"]]
        agree = [(colour - colour.mean()) @ (hue - hue.mean()) for hue in like]
        assert tint["answer"] == tint["options"][int(np.argmax(agree))]


def test_easy_answers_are_balanced() -> None:
    """Every option of each kind is right as often, and stands as often where it stands."""
    places: dict[str, list[int]] = {}
    for number in range(CLIPS):
        for row in ask("question_easy", number, seed=0):
            places.setdefault(row["kind"], []).append(row["options"].index(row["answer"]))
    assert set(places) == {"count", "tint"}
    for answers in places.values():
        assert (abs(np.bincount(answers, minlength=4) / CLIPS - 1 / 4) < 0.03).all()


def test_kinds_tell_among_how_many_squares_one_is_found() -> None:
    numbers: dict[str, set[int]] = {}
    for number in range(200):
        questions = ask("question_control", number, seed=0)
        (kind,) = {row["kind"] for row in questions}
        numbers.setdefault(kind, set()).add(len(questions))
    assert numbers == {"one": {1}, "few": {2, 3, 4}, "many": {5, 6, 7, 8}}
