import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from fvlm.evaluation.tables import RatioRow
from fvlm.report.charts import (
    COLOURS,
    controls_chart,
    curves_chart,
    frames_chart,
    motion_chart,
)
from fvlm.report.page import Report

ROWS = [
    RatioRow("coarse, frames 3+", "a", 1.02, 1.01, 1.03, 6),
    RatioRow("random queries, frames 3+", "b", None, None, None, 6),
]


@pytest.fixture(scope="module")
def charts(make_report: Callable[..., Report]) -> list[str]:
    report = make_report()
    return [
        controls_chart(ROWS),
        frames_chart(report.frames),
        motion_chart(report.motion),
        curves_chart(report.curves),
    ]


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
