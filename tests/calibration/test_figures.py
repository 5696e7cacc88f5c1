"""The picture of a calibration: every figure beside the name of its own trial."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fvlm.calibration import figures
from fvlm.calibration.trials import COMPARED, TRIALS, TrialResult
from fvlm.statistics.arms import CONTROLS, MEANINGS
from fvlm.statistics.ratio import UNDEFINED, Estimate


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> Axes:
    """The axes that the picture is drawn on."""
    drawn = Figure().add_subplot()

    @contextmanager
    def picture(_: Path) -> Iterator[Axes]:
        yield drawn

    monkeypatch.setattr(figures, "picture", picture)
    return drawn


def points(axes: Axes, marker: str) -> list[tuple[float, float]]:
    lines = [line for line in axes.lines if line.get_marker() == marker]
    return [(float(x), float(y)) for line in lines for x, y in np.asarray(line.get_xydata())]


def test_every_trial_beside_its_name(axes: Axes) -> None:
    results = {}
    for number, trial in enumerate(TRIALS):
        value = 1.0 + number / 10
        against = dict.fromkeys(COMPARED, UNDEFINED)
        against |= {arm: Estimate(value - k, 0, 9) for k, arm in enumerate(CONTROLS, start=1)}
        results[trial.name] = TrialResult(
            ratio=Estimate(value, value - 0.01, value + 0.02),
            ratio_frame_2=UNDEFINED,
            ratio_all_frames=UNDEFINED,
            against=against,
            ratio_training_clips=UNDEFINED,
            coarse_only=None,
            by_seed={},
            loss_coarse=1,
            loss_fine=1,
            videos=333,
            seeds=1 + 2 * trial.replicated,
            gains={},
        )
    figures.plot_calibration(results, TRIALS, Path("not written.png"))
    labels = {
        float(place): label.get_text().replace("\n", " ")
        for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    }
    assert {labels[height]: value for value, height in points(axes, "o")} == {
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
