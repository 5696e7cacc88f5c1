import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from fvlm.report.pictures import (
    CELL,
    LEAST_SCALE,
    attention_cell,
    cell,
    fixation_sheet,
    map_scale,
    path_cell,
    prediction_cell,
    prediction_sheet,
    printable,
    shown_frames,
)
from fvlm.report.view import ClipView

SIDE = 3
ALONG = [(t % SIDE, t // SIDE) for t in range(7)]  # patch (column, row) that the fine pass reads


def brightness(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), float)


def test_the_same_view_gives_the_same_pictures(view: ClipView) -> None:
    for sheet in (fixation_sheet, prediction_sheet):
        first, again = sheet(view, "clip"), sheet(view, "clip")
        assert first.tobytes() == again.tobytes()
        file = io.BytesIO()
        first.save(file, format="PNG")
        assert Image.open(file).size == first.size


def test_the_map_is_brightest_where_the_attention_is() -> None:
    black = np.zeros((30, 30, 3), np.uint8)
    attention = np.zeros((SIDE, SIDE), np.float32)
    attention[1, 2] = 9.0  # row 1, column 2
    picture = brightness(attention_cell(black, attention, 9.0))
    patch = CELL // SIDE
    found = picture[: patch * SIDE, : patch * SIDE].reshape(SIDE, patch, SIDE, patch).mean((1, 3))
    assert np.unravel_index(found.argmax(), found.shape) == (1, 2)
    assert found[1, 2] > 10 * np.median(found) + 10


def test_pixels_beyond_the_last_whole_patch_are_not_covered() -> None:
    """Nine patches of 14 pixels cover 126 of 128 pixels."""
    white = np.full((128, 128, 3), 255, np.uint8)
    picture = np.asarray(attention_cell(white, np.zeros((9, 9), np.float32), 3.0), float)
    covered, rest = picture[:, : CELL - 4], picture[:, -1]
    assert np.ptp(rest, axis=-1).max() == 0  # grey
    assert covered.mean() < rest.mean()


def test_even_attention_looks_even_and_dim(view: ClipView) -> None:
    even = dataclasses.replace(view, passes={"coarse": view.passes["coarse"]})
    assert map_scale(even) == LEAST_SCALE
    assert map_scale(view) == pytest.approx(SIDE * SIDE)


def test_fixations_are_the_patches_that_were_looked_at(view: ClipView) -> None:
    places = view.passes["fine"].fixations
    expected = [((column + 0.5) / SIDE, (row + 0.5) / SIDE) for column, row in ALONG]
    np.testing.assert_allclose(places, expected)


def test_the_path_grows_with_the_frames(view: ClipView) -> None:
    found = view.passes["fine"]
    whole = path_cell(view, found)
    assert whole.tobytes() == path_cell(view, found, until=len(view.frames) - 1).tobytes()
    assert whole.tobytes() != path_cell(view, found, until=3).tobytes()


def test_persistence_is_the_frame_before(view: ClipView) -> None:
    picture, error = prediction_cell(view, "persistence", 3)
    assert picture.tobytes() == cell(view.decoded["actual"][2]).tobytes()
    assert error == "error 0.5000"
    assert prediction_cell(view, "persistence", 0)[1] == "no frame before"
    assert prediction_cell(view, "fine", 0)[1] == "error 0.1250"


def test_few_frames_are_all_shown(view: ClipView) -> None:
    assert shown_frames(view) == [0, 1, 2, 4, 5, 6]
    short = dataclasses.replace(view, frames=view.frames[:3])
    assert shown_frames(short) == [0, 1, 2]


def test_titles_of_any_name_can_be_drawn() -> None:
    assert printable("日本 a\udcff.mp4") == "?? a?.mp4"
    assert len(printable("x" * 500)) == 80
