"""What the pictures show: points, curves, and which frames stand under which heading."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fvlm.uncertainty import plots
from fvlm.uncertainty.plots import COLOURS, draw_icc, extremes, plot_sheet
from fvlm.uncertainty.reliability import icc_curve

ROWS = [
    {"passes": 4, "icc_pre": 0.3, "icc_low_pre": 0.2, "icc_high_pre": 0.4,
     "icc_post": 0.5, "icc_low_post": 0.45, "icc_high_post": 0.55},
    {"passes": 16, "icc_pre": 0.6, "icc_low_pre": 0.5, "icc_high_pre": 0.7,
     "icc_post": 0.8, "icc_low_post": 0.75, "icc_high_post": 0.85},
]  # fmt: skip
T_HALF = {"pre": 10.0, "post": 4.0}


@pytest.mark.parametrize("variant", ["pre", "post"])
def test_points_intervals_and_fitted_curve(variant: str) -> None:
    axes = Figure().add_subplot()
    draw_icc(axes, ROWS, T_HALF)
    points, curve = (line for line in axes.lines if line.get_color() == COLOURS[variant])
    np.testing.assert_allclose(xy(points)[0], [4, 16], rtol=0.03)
    np.testing.assert_array_equal(xy(points)[1], [row[f"icc_{variant}"] for row in ROWS])
    assert points.get_linestyle() == "None"
    passes, fitted = xy(curve)
    assert (passes[0], passes[-1]) == pytest.approx((1, 32))
    np.testing.assert_allclose(fitted, icc_curve(passes, T_HALF[variant]))
    assert curve.get_linestyle() == "-"
    (bars,) = (
        bars
        for bars in axes.collections
        if np.allclose(np.asarray(bars.get_edgecolor())[0, :3], to_rgb(COLOURS[variant]))
    )
    found = [np.asarray(path.vertices)[:, 1].tolist() for path in bars.get_paths()]
    assert found == [[row[f"icc_{end}_{variant}"] for end in ("low", "high")] for row in ROWS]
    legend = axes.get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [
        "raw embedding: half at 10.0 passes",
        "normalised embedding: half at 4.0 passes",
    ]


def xy(line: Line2D) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = line.get_data()
    return np.asarray(x, float), np.asarray(y, float)


def test_undefined_figures_leave_a_gap() -> None:
    axes = Figure().add_subplot()
    undefined = {name: None for name in ROWS[1] if name != "passes"}
    draw_icc(axes, [ROWS[0], {"passes": 16} | undefined], {"pre": float("nan"), "post": 4.0})
    for variant, is_fitted in (("pre", False), ("post", True)):
        points, curve = (line for line in axes.lines if line.get_color() == COLOURS[variant])
        np.testing.assert_array_equal(xy(points)[1], [ROWS[0][f"icc_{variant}"], np.nan])
        assert np.isfinite(xy(curve)[1]).any() == is_fitted


def test_low_scores_are_certain() -> None:
    found = extremes(np.array([5.0, 1.0, 4.0, 2.0, 3.0]))
    assert {heading: frames.tolist() for heading, frames in found.items()} == {
        "Most certain": [1, 3],
        "Least certain": [0, 2],
    }
    assert [len(frames) for frames in extremes(np.arange(100.0)).values()] == [16, 16]
    assert [len(frames) for frames in extremes(np.ones(1)).values()] == [1, 1]


def test_each_half_of_the_sheet_shows_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Figure()

    @contextmanager
    def picture(*_: object, **__: object) -> Iterator[Figure]:
        yield kept

    monkeypatch.setattr(plots, "_picture", picture)
    frames = np.zeros((4, 3, 2, 2), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    scores = np.array([5.0, 1.0, 4.0, 2.0])
    plot_sheet(frames, scores, list("abcd"), tmp_path / "x.png", title="t")
    found = {
        half.get_suptitle(): [
            (int(np.asarray(axes.images[0].get_array()).max()), axes.get_title())
            for axes in half.axes
            if axes.images
        ]
        for half in kept.subfigs
    }
    assert found == {
        "Most certain": [(1, "0.33x\nb"), (3, "0.67x\nd")],
        "Least certain": [(0, "1.67x\na"), (2, "1.33x\nc")],
    }
