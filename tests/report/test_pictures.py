import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from fvlm.report.pictures import (
    CELL,
    GAP,
    LEAST_SCALE,
    LINE,
    PAPER,
    attention_cell,
    cell,
    fixation_sheet,
    map_scale,
    mark_fixation,
    path_cell,
    prediction_cell,
    prediction_sheet,
    printable,
    shown_frames,
    similarity_cell,
    write_text,
)
from fvlm.report.view import ClipView
from tests.report.conftest import places

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


def place(picture: Image.Image, sheet: Image.Image) -> tuple[int, int]:
    (found,) = places(np.asarray(picture), np.asarray(sheet))
    return found


def text(lines: str, *, width: int = CELL) -> Image.Image:
    canvas = Image.new("RGB", (width, LINE * (lines.count("\n") + 1)), PAPER)
    write_text(canvas, 0, 0, lines)
    return canvas


def columns_and_rows(
    corners: dict[tuple[str, int], tuple[int, int]],
) -> tuple[list[str], list[int]]:
    """Names from left to right and frames from top to bottom; all must stand in straight lines."""
    x = {(name, corner[0]) for (name, _), corner in corners.items()}
    y = {(t, corner[1]) for (_, t), corner in corners.items()}
    names = [name for name, _ in sorted(x, key=lambda pair: pair[1])]
    return names, [t for t, _ in sorted(y, key=lambda pair: pair[1])]


def test_every_cell_of_the_attention_sheet_is_its_own_pass_and_frame(view: ClipView) -> None:
    sheet, scale = fixation_sheet(view, "clip"), map_scale(view)
    cells = {
        (name, t): place(
            mark_fixation(attention_cell(view.frames[t], found.maps[t], scale), found.fixations[t]),
            sheet,
        )
        for name, found in view.passes.items()
        for t in shown_frames(view)
    }
    assert columns_and_rows(cells) == (["coarse", "fine", "autoregressive"], [0, 1, 2, 4, 5, 6])
    for t in shown_frames(view):
        x, y = place(cell(view.frames[t]), sheet)
        assert y == cells["fine", t][1]
        assert x < cells["coarse", t][0]
        assert place(text(f"frame {t + 1}, {1.5 * t:.1f} s"), sheet) == (x, y - LINE)


def test_every_pass_has_its_own_figures_path_and_similarity(view: ClipView) -> None:
    sheet = fixation_sheet(view, "clip")
    figures = {
        "coarse": "entropy 100%\npeak 1.0 x",
        "fine": "entropy 0%\npeak 9.0 x",
        "autoregressive": "entropy 50%\npeak 4.5 x",
    }
    for name, found in view.passes.items():
        x, _ = place(text(f"{name}\n{figures[name]}"), sheet)
        assert place(path_cell(view, found), sheet)[0] == x
        assert place(similarity_cell(found.similarity), sheet)[0] == x


def test_every_cell_of_the_prediction_sheet_is_its_own_arm_and_frame(view: ClipView) -> None:
    sheet = prediction_sheet(view, "clip")
    cells = {
        (arm, t): place(cell(view.decoded[arm][t]), sheet)
        for arm in ("coarse", "fine")
        for t in shown_frames(view)
    }
    assert columns_and_rows(cells) == (["coarse", "fine"], [0, 1, 2, 4, 5, 6])
    for t in shown_frames(view):
        x, y = cells["fine", t]
        assert place(text(f"error {0.125 + t / 100:.4f}"), sheet) == (x, y - LINE)
        assert place(text(f"error {0.25 + t / 100:.4f}"), sheet) == (
            cells["coarse", t][0],
            y - LINE,
        )
    for arm in ("coarse", "fine"):
        x, y = cells[arm, 0]
        assert place(text(f"{arm} pass"), sheet) == (x, y - 3 * LINE)


def test_actual_frames_stand_left_and_the_frames_before_right(view: ClipView) -> None:
    sheet = np.asarray(prediction_sheet(view, "clip"))
    left = min(x for x, _ in places(np.asarray(cell(view.decoded["actual"][0])), sheet))
    for t in shown_frames(view):
        ((_, y),) = places(np.asarray(cell(view.decoded["fine"][t])), sheet)
        assert (left, y) in places(np.asarray(cell(view.decoded["actual"][t])), sheet)
        before = places(np.asarray(cell(view.decoded["actual"][t - 1])), sheet)
        assert t == 0 or [x for x, row in before if row == y] == [sheet.shape[1] - CELL - GAP]


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
    assert error == "error 0.5300"
    assert prediction_cell(view, "persistence", 0)[1] == "none before"
    assert prediction_cell(view, "fine", 0)[1] == "error 0.1250"


def test_few_frames_are_all_shown(view: ClipView) -> None:
    assert shown_frames(view) == [0, 1, 2, 4, 5, 6]
    short = dataclasses.replace(view, frames=view.frames[:3])
    assert shown_frames(short) == [0, 1, 2]


def test_titles_of_any_name_can_be_drawn() -> None:
    assert printable("日本 a\udcff.mp4") == "?? a?.mp4"
    assert len(printable("x" * 500)) == 60
