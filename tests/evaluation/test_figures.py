"""What the charts draw: every figure beside the name of its own arm, frame or trial."""

import dataclasses
import itertools
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from fvlm.evaluation.figures import (
    DARK,
    controls_height,
    draw_controls,
    draw_curves,
    draw_frames,
    draw_motion,
    svg_chart,
    write_chart,
)
from fvlm.statistics.evaluation import FrameRow, MotionRow
from fvlm.statistics.ratio import UNDEFINED, Estimate
from fvlm.statistics.tables import RatioRow

CONTROLS = [
    RatioRow("coarse", "coarse, frames 3+", Estimate(1.02, 1.01, 1.03), 6),
    RatioRow("random", "random queries, frames 3+", Estimate(0.97, None, None), 1),
    RatioRow("shuffled", "another video's, frames 3+", UNDEFINED, 6),
    RatioRow("static_in_fine", "the static query, frames 3+", Estimate(1.05, 1.04, 1.08), 6),
]
RATIOS = {2: Estimate(0.96, 0.91, 1.02), 3: Estimate(1.07, None, None), 4: UNDEFINED}
RATIOS |= {5: Estimate(1.01, 1.0, 1.04), 6: Estimate(1.03, 1.0, 1.2)}
FRAMES = [FrameRow(frame=t, losses={}, ratio=ratio) for t, ratio in RATIOS.items()]
MOTION = [
    MotionRow(quartile=n, clips=n, videos=n, loss_persistence=None, ratio=ratio)
    for n, ratio in enumerate(list(RATIOS.values())[:4], start=1)
]
CURVES = [{"samples": "8", "loss_coarse": "0.5", "loss_fine": "0.4"}] * 2
ALL = (
    partial(draw_controls, rows=CONTROLS),
    partial(draw_frames, rows=FRAMES),
    partial(draw_motion, rows=MOTION),
    partial(draw_curves, rows=CURVES, held_out=CURVES[::2]),
)


@pytest.fixture
def axes() -> Axes:
    return Figure().add_subplot()


def places(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def points(axes: Axes) -> dict[tuple[float, float], bool]:
    """Every marker, and whether it is filled."""
    return {
        place: line.get_markerfacecolor() != "none"
        for line in axes.lines
        if line.get_marker() == "o"
        for place in places(line)
        if not np.isnan(place).any()
    }


def bars(axes: Axes) -> list[list[tuple[float, float]]]:
    return [places(line) for line in axes.lines if line.get_linewidth() == 4]


def test_every_control_has_its_own_label_ratio_and_interval(axes: Axes) -> None:
    draw_controls(axes, CONTROLS)
    labels = {
        float(place): label.get_text().replace("\n", ", ")
        for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    }
    assert {labels[y]: (x, filled) for (x, y), filled in points(axes).items()} == {
        "coarse, frames 3+": (1.02, True),
        "random queries, frames 3+": (0.97, False),
        "the static query, frames 3+": (1.05, True),
    }
    assert {labels[left[1]]: (left[0], right[0]) for left, right in bars(axes)} == {
        "coarse, frames 3+": (1.01, 1.03),
        "the static query, frames 3+": (1.04, 1.08),
    }
    texts = {text.get_text(): labels[text.xy[1]] for text in axes.texts}  # type: ignore[attr-defined]
    assert texts["undefined"] == "another video's, frames 3+"
    assert texts["0.9700"] == "random queries, frames 3+"


def test_each_training_has_a_ring_below_the_ratio_of_all(axes: Axes) -> None:
    whole, other = CONTROLS[0], CONTROLS[3]
    draw_controls(axes, [dataclasses.replace(whole, seeds=(1.01, 1.04)), other])
    rings = sorted((x, filled) for (x, y), filled in points(axes).items() if 0.5 < y < 1)
    assert rings == [(1.01, False), (1.04, False)]


@pytest.mark.parametrize(
    ("draw", "rows", "first"), [(draw_frames, FRAMES, 2), (draw_motion, MOTION, 1)]
)
def test_points_without_an_interval_are_hollow_and_no_line_leads_to_them(
    axes: Axes, draw: Callable[..., None], rows: list[object], first: int
) -> None:
    draw(axes, rows)
    drawn = {first: (0.96, True), first + 1: (1.07, False), first + 3: (1.01, True)}
    found = {int(x): (y, filled) for (x, y), filled in points(axes).items()}
    assert {place: found[place] for place in drawn} == drawn
    assert first + 2 not in found
    assert bars(axes)[:2] == [
        [(first, 0.91), (first, 1.02)],
        [(first + 3, 1.0), (first + 3, 1.04)],
    ]
    (joined,) = (
        line for line in axes.lines if (line.get_marker(), line.get_linestyle()) == ("o", "-")
    )
    assert [bool(np.isnan(y)) for _, y in places(joined)][:4] == [False, True, True, False]


def test_held_out_clips_on_the_way_stand_beside_the_curves_where_there_are_any(
    axes: Axes,
) -> None:
    row = {"samples": "16", "loss_coarse": "0.5", "loss_fine": "0.4"}
    draw_curves(axes, [row], [])
    assert len(axes.get_lines()) == 2
    draw_curves(axes, [], [row | {"samples": "8"}])
    drawn = {str(line.get_label()): line.get_xydata() for line in axes.get_lines()[2:]}
    assert list(drawn) == ["coarse pass, held-out clips", "fine pass, held-out clips"]
    assert [np.asarray(points).tolist() for points in drawn.values()] == [[[8, 0.5]], [[8, 0.4]]]


def test_quartiles_say_how_many_clips_they_hold(axes: Axes) -> None:
    draw_motion(axes, MOTION)
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["1\n1 clip", "2\n2 clips"]


def test_labels_of_many_controls_do_not_overlap() -> None:
    rows = [RatioRow("x", f"arm {n}, frames 3+", Estimate(1, 0.9, 1.1), 6) for n in range(14)]
    figure = Figure(figsize=(5.4, controls_height(rows)), layout="constrained")
    axes = figure.add_subplot()
    draw_controls(axes, rows)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for lower, upper in itertools.pairwise(boxes))


def test_charts_of_the_page_are_sound_in_two_colour_schemes_and_without_chance() -> None:
    for draw in ALL:
        svg = svg_chart(draw)
        ET.fromstring(svg)
        style = svg[svg.index("<style") : svg.index("</style>")]
        assert "prefers-color-scheme:dark" in style
        for light, dark in DARK.items():
            assert light in style
            assert dark in style
            assert light not in svg.replace(style, "")
        assert "<dc:date>" not in svg
        assert svg_chart(draw) == svg


def test_a_picture_is_the_same_chart_with_a_title(tmp_path: Path) -> None:
    for draw in ALL:
        write_chart(tmp_path / "a.png", draw, title="")
        write_chart(tmp_path / "b.png", draw, title="Ratio")
        write_chart(tmp_path / "c.png", draw, title="Ratio")
        first, second = (Image.open(tmp_path / name) for name in ("a.png", "b.png"))
        assert first.size == second.size == (960, 540)
        assert first.tobytes() != second.tobytes()
        assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()
