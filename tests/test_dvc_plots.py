"""The page of `dvc plots show` draws its charts without a net."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from dvc_render.html import render_html
from dvc_render.image import ImageRenderer
from dvc_render.vega import VegaRenderer

from tests.projects import ROOT

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

LINES = "all => all.map(line => line.getAttribute('points').split(' ').map(p => p.split(',')[1]))"


def row(rev: str, seen: int, name: str, value: float | str) -> dict[str, Any]:
    """A point as DVC hands it over: cells of a CSV file are text."""
    return {"rev": rev, "samples": str(seen), "field": name, "y": str(value)}


ROWS = [
    *(row(rev, seen, "fine", seen / 8) for rev in ("HEAD", "workspace") for seen in (16, 8, 24)),
    row("workspace", 8, "coarse", 3.0),
    row("workspace", 16, "coarse", ""),
    row("workspace", 24, "coarse", 1.0),
]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_line_for_each_column_of_each_revision(tmp_path: Path) -> None:
    about = {"x": "samples", "y": "y", "title": "loss <b>", "x_label": "clips seen"}
    columns = [{"filename": "a.csv", "field": name} for name in ("coarse", "fine")]
    charts = [VegaRenderer(ROWS, "loss", anchors_y_definitions=columns, **about)]
    image = [{"rev": "HEAD", "src": "data:image;base64,R0lGODlhAQABAAAAACw="}]
    page = tmp_path / "index.html"
    render_html([*charts, ImageRenderer(image, "a.png")], page, ROOT / ".dvc/plots.html")
    complaints: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_context(offline=True).new_page()
        for event in ("pageerror", "requestfailed"):
            shown.on(event, lambda what: complaints.append(str(what)))
        shown.goto(page.as_uri())
        heights = shown.locator("polyline").evaluate_all(LINES)
        texts = shown.locator("main").inner_text()
        browser.close()
    assert complaints == []
    first, second, third = ([float(y) for y in line] for line in heights)
    assert first == second == sorted(first, reverse=True)  # it rises: y counts from the top
    assert len(third) == 2  # what is empty is no point
    assert (third[0], third[1]) == (first[2], first[0])
    for text in ("loss <b>", "clips seen", "HEAD: fine", "workspace: coarse", "a.png"):
        assert text in texts
