"""Every figure is that of its variant, snapshot, trials and frames: scores that say their place."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fvlm.uncertainty.reliability import (
    fit_t_half,
    icc_and_snr_intervals,
    icc_curve,
    reliability,
    spearman_interval,
)
from fvlm.uncertainty.sampling import UncertaintyParams
from fvlm.uncertainty.summary import FrameName, Summary, summarize
from fvlm.uncertainty.validity import compare

VARIANTS = ("pre", "post")
TRIALS, FRAMES = 4, 12
NAMES = [FrameName(f"clip {n // 3}", f"{n // 3}.mp4", n % 3) for n in range(FRAMES)]
CLIPS = [name.clip for name in NAMES]

Scores = NDArray[np.float64]


def coded(trials: int) -> Scores:
    """Scores [2,2,K,N]: thousands say the variant, hundreds the snapshot, tens the trial."""
    variant, snapshot, trial, frame = np.indices((2, 2, trials, FRAMES))
    return np.asarray(1000 * (variant + 1) + 100 * snapshot + 10 * trial + frame / 10)


@dataclass(frozen=True)
class Case:
    scores: Scores
    changed: dict[str, Scores]
    params: UncertaintyParams
    summary: Summary


@pytest.fixture
def case(params_of: Callable[..., UncertaintyParams]) -> Case:
    """Coded scores, and enough noise that no two parts of them have the same figures."""
    rng = np.random.default_rng(0)
    scores = coded(TRIALS) + rng.normal(scale=20, size=(2, 2, TRIALS, FRAMES))
    scores += rng.normal(scale=40, size=(2, 2, 1, FRAMES))
    changed = {
        kind: coded(1) + shift + rng.normal(scale=30, size=(2, 2, 1, FRAMES))
        for kind, shift in (("blur", 10), ("downsample", 30))
    }
    params = params_of(trials=TRIALS)
    return Case(scores, changed, params, summarize(scores, changed, NAMES, params))


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        assert found[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5))


def intervals(table: NDArray[np.float64]) -> dict[str, float]:
    icc, snr = icc_and_snr_intervals(table, CLIPS, samples=50, seed=0)
    rho = spearman_interval(table, CLIPS, samples=50, seed=0)
    ends = {"icc": icc, "snr": snr, "spearman_median": rho}
    return {f"{name}_low": low for name, (low, _) in ends.items()} | {
        f"{name}_high": high for name, (_, high) in ends.items()
    }


@pytest.mark.parametrize("number", [0, 1])
def test_metrics_are_those_of_all_passes(case: Case, number: int) -> None:
    table, variant = case.scores[number, -1], VARIANTS[number]
    figures: dict[str, Any] = asdict(reliability(table)) | {"verdict": reliability(table).verdict}
    figures["t_half"] = fit_t_half([4, 8], [reliability(part).icc for part in case.scores[number]])
    figures |= intervals(table)
    for kind, others in case.changed.items():  # trial 0: changed frames are those of its masks
        pairs = asdict(compare(table[0], others[number, -1, 0], CLIPS))
        figures |= {f"{kind}_{name}": value for name, value in pairs.items()}
    close(case.summary.metrics, {f"{variant}_{name}": value for name, value in figures.items()})
    assert case.summary.t_half[variant] == figures["t_half"]


def test_metrics_are_flat_and_name_the_design(case: Case) -> None:
    expected = {"frames": FRAMES, "clips": 4, "trials": TRIALS, "passes": 8}
    assert case.summary.metrics | expected == case.summary.metrics
    assert all(isinstance(value, float | int | str) for value in case.summary.metrics.values())


def test_a_row_for_each_number_of_passes(case: Case) -> None:
    rows = case.summary.by_passes
    assert [row["passes"] for row in rows] == [4, 8]
    for number, variant in enumerate(VARIANTS):
        fitted = icc_curve(np.array([4.0, 8.0]), case.summary.t_half[variant])
        for snapshot, row in enumerate(rows):
            found = reliability(case.scores[number, snapshot])
            figures = asdict(found) | intervals(case.scores[number, snapshot])
            figures |= {"icc_fitted": fitted[snapshot], "verdict": found.verdict}
            close(row, {f"{name}_{variant}": value for name, value in figures.items()})


def test_a_row_for_each_frame(params_of: Callable[..., UncertaintyParams]) -> None:
    changed = {"blur": coded(1) + 10000, "downsample": coded(1) + 20000}
    rows = summarize(coded(TRIALS), changed, NAMES, params_of(trials=TRIALS)).frames
    for frame, (row, name) in enumerate(zip(rows, NAMES, strict=True)):
        assert (row["clip"], row["video_id"], row["frame"]) == (
            name.clip, name.video_id, name.number
        )  # fmt: skip
        for number, variant in enumerate(VARIANTS):
            own = 1000 * (number + 1) + 100 + frame / 10
            close(row, {
                f"{variant}_mean": own + 15,  # trials add 0, 10, 20 and 30
                f"{variant}_sd": (500 / 3) ** 0.5,
                f"{variant}_blur": own + 10000,
                f"{variant}_downsample": own + 20000,
            })  # fmt: skip


def test_figures_that_are_not_defined_are_none(params_of: Callable[..., UncertaintyParams]) -> None:
    ones = np.ones((2, 2, TRIALS, FRAMES))
    summary = summarize(ones, {"blur": ones[:, :, :1]}, NAMES, params_of(trials=TRIALS))
    assert summary.metrics["pre_icc"] is None
    assert summary.by_passes[0]["icc_low_post"] is None
    assert summary.metrics["post_verdict"] == "undefined"
