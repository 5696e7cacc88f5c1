"""What the pictures draw: every figure beside the name of its own arm, frame or trial."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fvlm.calibration import figures as calibration_figures
from fvlm.calibration.trials import TRIALS
from fvlm.evaluation import figures as plots
from fvlm.statistics.arms import CONTROLS, MEANINGS
from fvlm.statistics.ratio import Estimate, named
from fvlm.statistics.summary import Summary

NOWHERE = Path("not written.png")


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> Axes:
    """The axes that the next picture is drawn on."""
    drawn = Figure().add_subplot()

    @contextmanager
    def picture(_: Path) -> Iterator[Axes]:
        yield drawn

    monkeypatch.setattr(plots, "picture", picture)
    return drawn


def places(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def points(axes: Axes, marker: str = "o") -> list[tuple[float, float]]:
    """Places of the markers of one kind, in the order of drawing."""
    return [place for line in axes.lines if line.get_marker() == marker for place in places(line)]


def labels_by_height(axes: Axes) -> dict[float, str]:
    return {
        float(place): label.get_text().replace("\n", " ")
        for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    }


def summary(metrics: dict[str, Any], **rows: list[dict[str, Any]]) -> Summary:
    return Summary(metrics, [], rows.get("frames", []), rows.get("motion", []))


def test_every_control_beside_its_name(axes: Axes) -> None:
    values = {"coarse": 1.2} | {arm: 1.3 + number for number, arm in enumerate(CONTROLS)}
    metrics: dict[str, Any] = {"videos": 6, "verdict": "validated"}
    for arm, value in values.items():
        name = f"{arm}_fine_ratio_dynamic"
        metrics |= named(name, Estimate(value, value - 0.1, value + 0.2))
    plots.plot_arms(summary(metrics), NOWHERE)
    labels = labels_by_height(axes)
    drawn = {labels[height]: value for value, height in points(axes)}
    assert drawn == {MEANINGS[arm]: value for arm, value in values.items()}
    bars = [[x for x, _ in places(line)] for line in axes.lines if line.get_linewidth() == 3]
    assert sorted(bars) == [[value - 0.1, value + 0.2] for value in values.values()]


def test_every_trial_beside_its_name(axes: Axes) -> None:
    figures: dict[str, Any] = {}
    for number, trial in enumerate(TRIALS):
        value = 1.0 + number / 10
        figures |= named(f"{trial.name}_ratio", Estimate(value, value - 0.01, value + 0.02))
        figures |= {f"{trial.name}_{arm}": value - k for k, arm in enumerate(CONTROLS, start=1)}
        figures |= {f"{trial.name}_videos": 333, f"{trial.name}_seeds": 1 + 2 * trial.replicated}
    calibration_figures.plot_calibration(figures, TRIALS, NOWHERE)
    labels = labels_by_height(axes)
    assert {labels[height]: value for value, height in points(axes)} == {
        "positive control shallow, 3 seeds": 1.0,
        "positive control deep, k = 1, 3 seeds": 1.1,
        "positive control deep, k = 3, 1 seed": 1.2,
        "negative control shallow, 3 seeds": 1.3,
        "noise control shallow, 1 seed": 1.4,
    }
    for k, (arm, marker) in enumerate(zip(CONTROLS, "s^v", strict=True), start=1):
        assert sorted(value for value, _ in points(axes, marker)) == pytest.approx(
            [1.0 + number / 10 - k for number in range(len(TRIALS))]
        )
        (label, *_) = (line.get_label() for line in axes.lines if line.get_marker() == marker)
        assert str(label) in MEANINGS[arm]
    assert "333 held-out videos" in axes.get_title(loc="left") + axes.get_title()


def test_a_point_without_an_interval_is_hollow_and_joined_to_none(axes: Axes) -> None:
    name = "coarse_fine_ratio_dynamic"
    estimates = [
        Estimate(1.1, 1.0, 1.2),
        Estimate(1.3, None, None),
        Estimate(0.9, 0.8, 1.0),
        Estimate(None, None, None),
    ]
    motion = [
        {"quartile": number, "clips": number, **named(name, estimate)}
        for number, estimate in enumerate(estimates, start=1)
    ]
    plots.plot_ratio_by_motion(summary({"videos": 6}, motion=motion), NOWHERE)
    joined, alone = (line for line in axes.lines if line.get_marker() == "o")
    assert places(joined) == [(1, 1.1), (3, 0.9)]
    assert places(alone) == [(2, 1.3)]
    assert (joined.get_linestyle(), alone.get_linestyle()) == ("-", "None")
    assert alone.get_markerfacecolor() == "none"
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == [
        "least\n1 clip",
        "less\n2 clips",
    ]
