"""Behind the sprites lies the film, as it goes on, from a place that chance decides."""

from pathlib import Path

import numpy as np
import pytest

from fvlm.corpus.rendered_film import footage
from fvlm.corpus.rendered_scenes import (
    CELL,
    PIXELS,
    SPRITE,
    STATES,
    Picture,
    make_scene,
    pictures,
)
from tests.corpus.conftest import footage_level

SECONDS = 12  # of each clip


def place_of(shown: list[Picture], film: list[Path]) -> tuple[int, int]:
    """Which clip of the film and which second of it come first."""
    (place,) = (
        (clip, second)
        for clip in range(len(film))
        for second in range(SECONDS)
        if abs(float(shown[0].mean()) - footage_level(clip, second)) < 3
    )
    return place


def test_pictures_follow_one_another_by_seconds(footage_film: list[Path]) -> None:
    """Only the square in the middle of a frame is taken: nothing is red."""
    for number in range(20):
        shown = footage(footage_film, number, seed=0)
        clip, first = place_of(shown, footage_film)
        assert [picture.shape for picture in shown] == [(PIXELS, PIXELS, 3)] * STATES
        for state, picture in enumerate(shown):
            inside = picture[:, 3:-3].astype(int)
            assert abs(inside - footage_level(clip, first + state)).max() < 4


def test_every_place_is_taken_and_a_clip_always_has_its_own(footage_film: list[Path]) -> None:
    places = set()
    for number in range(100):
        shown = footage(footage_film, number, seed=0)
        np.testing.assert_array_equal(shown, footage(footage_film, number, seed=0))
        places.add(place_of(shown, footage_film))
    assert places == {(clip, first) for clip in (0, 1) for first in range(SECONDS - STATES + 1)}


@pytest.mark.parametrize("number", range(4))
def test_sprites_of_question_control_stand_on_the_film(
    footage_film: list[Path], number: int
) -> None:
    """Inside the squares the two corpora are the same; all else is the film."""
    scene = make_scene("question_control", number, seed=0)
    inside = np.zeros((PIXELS, PIXELS), bool)
    for cell, shift in zip(scene.cells, scene.shifts, strict=True):
        top, left = CELL * np.array(divmod(int(cell), 4)) + (CELL - SPRITE) // 2 + shift
        inside[top : top + SPRITE, left : left + SPRITE] = True
    behind = footage(footage_film, number, seed=0)
    shown = np.array(pictures("question_on_film", number, seed=0, behind=behind))
    control = np.array(pictures("question_control", number, seed=0))
    np.testing.assert_array_equal(shown[:, inside], control[:, inside])
    np.testing.assert_array_equal(shown[:, ~inside], np.array(behind)[:, ~inside])
