import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pytest

from fvlm.report.charts import (
    COLOURS,
    controls_chart,
    curves_chart,
    frames_chart,
    motion_chart,
)
from fvlm.report.page import Report
from fvlm.statistics.tables import RatioRow

ROWS = [
    RatioRow("coarse, frames 3+", "a", 1.02, 1.01, 1.03, 6),
    RatioRow("random queries, frames 3+", "b", 0.97, None, None, 1),
    RatioRow("shuffled, frames 3+", "c", None, None, None, 6),
    RatioRow("persistence, frames 3+", "d", 1.05, 1.04, 1.08, 6),
]
SVG = "{http://www.w3.org/2000/svg}"
BAR, LINE = "4", "1.5"  # widths of intervals, and of what joins points

Corners = list[tuple[float, float]]


@pytest.fixture(scope="module")
def charts(make_report: Callable[..., Report]) -> list[str]:
    report = make_report()
    return [
        controls_chart(ROWS),
        frames_chart(report.frames),
        motion_chart(report.motion),
        curves_chart(report.curves),
    ]


class Drawn:
    """What a reader sees of a chart, in the units of its ticks."""

    def __init__(self, svg: str) -> None:
        (self.axes,) = (g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("id") == "axes_1")
        self.ticks = {axis: self._ticks(axis) for axis in "xy"}

    def _ticks(self, axis: str) -> dict[str, float]:
        """Where the tick of each label is."""
        found = {}
        for group in self.axes.iter(f"{SVG}g"):
            if group.get("id", "").startswith(f"{axis}tick_"):
                (tick,) = group.iter(f"{SVG}use")
                label = " ".join(text.text or "" for text in group.iter(f"{SVG}text"))
                found[label] = float(tick.attrib[axis])
        return found

    def points(self) -> list[tuple[float, float, bool]]:
        """(x, y, whether it is filled) of every marker."""
        markers = self.axes.findall(f"{SVG}g/{SVG}g/{SVG}use")  # those of ticks lie deeper
        return [
            (float(m.attrib["x"]), float(m.attrib["y"]), "fill: var(--accent)" in m.attrib["style"])
            for m in markers
        ]

    def lines(self, width: str) -> list[Corners]:
        """Coloured lines of a width; a gap begins a new one."""
        found = []
        for path in self.axes.findall(f"{SVG}g/{SVG}path"):
            style = path.get("style", "")
            if f"stroke-width: {width}" in style and "var(--accent)" in style:
                for part in path.attrib["d"].split("M ")[1:]:
                    numbers = [float(n) for n in part.replace("L", " ").split()]
                    found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
        return found

    def label(self, axis: str, place: float) -> str:
        return min(self.ticks[axis], key=lambda name: abs(self.ticks[axis][name] - place))

    def value(self, axis: str, place: float) -> float:
        """Read off between the numbers at the ticks."""
        ticks = self.ticks[axis]
        slope, start = np.polyfit(list(ticks.values()), [float(name) for name in ticks], 1)
        return round(float(slope * place + start), 3)


def test_every_control_has_its_own_label_ratio_and_interval() -> None:
    drawn = Drawn(controls_chart(ROWS))
    points = {drawn.label("y", y): (drawn.value("x", x), full) for x, y, full in drawn.points()}
    bars = {
        drawn.label("y", left[1]): (drawn.value("x", left[0]), drawn.value("x", right[0]))
        for left, right in drawn.lines(BAR)
    }
    assert points == {
        "coarse frames 3+": (1.02, True),
        "random queries frames 3+": (0.97, False),
        "persistence frames 3+": (1.05, True),
    }
    assert bars == {"coarse frames 3+": (1.01, 1.03), "persistence frames 3+": (1.04, 1.08)}


def test_labels_of_many_controls_do_not_overlap() -> None:
    many = [RatioRow(f"arm {n}, frames 3+", f"{n}", 1.0, 0.9, 1.1, 6) for n in range(12)]
    places = sorted(Drawn(controls_chart(many)).ticks["y"].values())
    assert np.diff(places).min() > 26  # two lines of type of 11 points, in points


def ratios(place: str, name: str, *rows: str) -> list[dict[str, str]]:
    """Rows "place ratio low high" of a table; "-": undefined."""
    names = (place, name, f"{name}_low", f"{name}_high")
    cells = [["" if cell == "-" else cell for cell in row.split()] for row in rows]
    return [dict(zip(names, row, strict=True)) | {"clips": row[0]} for row in cells]


def test_every_frame_has_its_own_ratio_and_interval() -> None:
    rows = ratios(
        "frame",
        "coarse_fine_ratio",
        "1 - - -",
        "2 0.96 0.91 1.02",
        "3 1.07 1.03 1.1",
        "4 1.01 1 1.04",
    )
    drawn = Drawn(frames_chart(rows))
    points = [(drawn.value("x", x), drawn.value("y", y)) for x, y, _ in drawn.points()]
    bars = [
        (drawn.value("x", x), drawn.value("y", low), drawn.value("y", high))
        for (x, low), (_, high) in drawn.lines(BAR)
    ]
    assert points == [(2, 0.96), (3, 1.07), (4, 1.01)]
    assert bars == [(2, 0.91, 1.02), (3, 1.03, 1.1), (4, 1, 1.04)]


def test_points_without_an_interval_are_hollow_and_no_line_leads_to_them() -> None:
    rows = ratios(
        "quartile",
        "coarse_fine_ratio_dynamic",
        "1 0.98 - -",
        "2 1.02 1 1.03",
        "3 1.05 1.01 1.09",
        "4 0.99 - -",
    )
    drawn = Drawn(motion_chart(rows))
    points = {drawn.label("x", x): (drawn.value("y", y), full) for x, y, full in drawn.points()}
    assert points == {
        "1 1 clip": (0.98, False),
        "2 2 clips": (1.02, True),
        "3 3 clips": (1.05, True),
        "4 4 clips": (0.99, False),
    }
    ends = [[drawn.label("x", x) for x, _ in line] for line in drawn.lines(LINE)]
    assert ends == [["2 2 clips", "3 3 clips"]]


def test_charts_are_sound_xml_in_two_colour_schemes(charts: list[str]) -> None:
    for svg in charts:
        ET.fromstring(svg)
        assert "prefers-color-scheme:dark" in svg
        assert "var(--ink)" in svg
        assert not [colour for colour in COLOURS if colour in svg]


def test_charts_hold_no_time_and_no_chance(charts: list[str]) -> None:
    assert charts[0] == controls_chart(ROWS)
    assert "<dc:date>" not in charts[0]


def test_charts_label_their_axes(charts: list[str]) -> None:
    labels = ("loss of the fine pass", "frame of the clip", "quartile of motion", "clips seen")
    for svg, label in zip(charts, labels, strict=True):
        assert label in svg
