"""Every estimator against a published table, a closed form, or a simulation with known truth."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fvlm.uncertainty.reliability import (
    Reliability,
    fit_t_half,
    icc_and_snr_intervals,
    icc_curve,
    reliability,
    spearman_interval,
)

# Shrout and Fleiss (1979), table 2: 6 targets, 4 judges.
JUDGES = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9],
                   [6, 2, 4, 7]], float).T  # fmt: skip


def simulated(
    rng: np.random.Generator, *, trials: int, frames: int, between: float, within: float
) -> NDArray[np.float64]:
    """Scores [K,N] with these standard deviations."""
    own = rng.normal(scale=between, size=frames)
    return 10 + own + rng.normal(scale=within, size=(trials, frames))


def test_the_published_example() -> None:
    found = reliability(JUDGES)
    assert found.icc == pytest.approx(0.17, abs=0.005)
    assert found.icc_k == pytest.approx(0.44, abs=0.005)
    # Mean squares of the paper: between targets 11.24, within 6.26, judges 32.49, residual 1.02.
    assert found.snr == pytest.approx(11.24 / 6.26 / 4, rel=0.01)
    assert found.trial_f == pytest.approx(32.49 / 1.02, rel=0.01)
    assert found.trial_p < 1e-4


def test_figures_of_known_components() -> None:
    scores = simulated(np.random.default_rng(0), trials=10, frames=20000, between=2, within=1)
    found = reliability(scores)
    assert found.icc == pytest.approx(4 / 5, abs=0.01)
    assert found.icc_k == pytest.approx(4 / (4 + 0.1), abs=0.01)
    # The frames' means carry a tenth of the variance within frames.
    assert found.snr == pytest.approx(4 + 0.1, rel=0.02)
    pearson = 4 / 5
    assert found.spearman_median == pytest.approx(6 / np.pi * np.arcsin(pearson / 2), abs=0.01)
    assert found.trial_p > 1e-3


def test_the_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng, hits, clips = np.random.default_rng(1), np.zeros(3), list("abcdefghijklmnopqrst")
    rho = 6 / np.pi * np.arcsin(0.5 / 2)
    for _ in range(100):
        scores = simulated(rng, trials=5, frames=20, between=1, within=1)
        icc, snr = icc_and_snr_intervals(scores, clips, samples=200, seed=0)
        found = (icc, snr, spearman_interval(scores, clips, samples=200, seed=0))
        hits += [
            low <= true <= high for (low, high), true in zip(found, (0.5, 1.2, rho), strict=True)
        ]
    assert (hits / 100 >= 0.88).all()
    assert (hits / 100 <= 0.99).all()


def test_shared_masks_show_as_a_difference_between_trials() -> None:
    """Frames that share a trial's chance move together."""
    rng = np.random.default_rng(2)
    scores = simulated(rng, trials=10, frames=50, between=1, within=0.5)
    assert reliability(scores).trial_p > 0.01
    shared = scores + rng.normal(scale=0.5, size=(10, 1))
    assert reliability(shared).trial_p < 1e-6


def test_identical_and_undefined_scores() -> None:
    ideal = reliability(np.tile(np.arange(5.0), (3, 1)))
    assert (ideal.icc, ideal.icc_k, ideal.spearman_median) == pytest.approx((1, 1, 1))
    assert ideal.verdict == "usable"
    constant = reliability(np.ones((3, 5)))
    assert np.isnan(constant.icc)
    assert constant.verdict == "undefined"
    with pytest.raises(ValueError, match="at least 2 trials and 2 frames, got 1 and 5"):
        reliability(np.ones((1, 5)))


@pytest.mark.parametrize(
    ("rho", "ratio", "icc", "verdict"),
    [
        (0.8, 2, 0.75, "usable"),
        (0.79, 2, 0.75, "marginal"),
        (0.8, 1.99, 0.75, "marginal"),
        (0.8, 2, 0.74, "marginal"),
        (0.6, 1, 0.1, "marginal"),
        (0.59, 9, 0.9, "failed"),
        (0.9, 0.99, 0.9, "failed"),
    ],
)
def test_gates(rho: float, ratio: float, icc: float, verdict: str) -> None:
    assert Reliability(icc, 1, rho, ratio, 1, 1).verdict == verdict


def test_with_ten_trials_the_icc_gate_is_the_stricter_one() -> None:
    """ICC = .75 is SNR = 3.1 exactly."""
    rng = np.random.default_rng(3)
    scores = simulated(rng, trials=10, frames=12, between=1, within=0.5)
    found = reliability(scores)
    ratio = (1 + 9 * found.icc) / (1 - found.icc)
    assert found.snr == pytest.approx(ratio / 10)
    assert pytest.approx(3.1) == (1 + 9 * 0.75) / (1 - 0.75) / 10


@pytest.mark.parametrize("half", [0.01, 3.0, 40.0, 1e4])
def test_t_half_of_an_exact_curve(half: float) -> None:
    passes = [4, 16, 64]
    found = fit_t_half(passes, icc_curve(np.array(passes, float), half).tolist())
    assert found == pytest.approx(half, rel=1e-3)


def test_t_half_of_variances_is_c_over_cv_squared() -> None:
    """Variances of T Gaussian passes: relative deviation sqrt(2 / (T - 1)), so c^2 is about 2."""
    rng = np.random.default_rng(4)
    true, icc, passes = rng.gamma(25, 1 / 25, size=2000), [], (8, 32, 128)  # CV = 1/5
    for count in passes:
        scores = true * rng.chisquare(count - 1, size=(10, 2000)) / (count - 1)
        icc.append(reliability(scores).icc)
    assert fit_t_half(passes, icc) == pytest.approx(2 / 0.04, rel=0.15)


def test_t_half_without_any_reliability() -> None:
    assert np.isnan(fit_t_half([4, 16], [-0.1, 0.0]))
    assert np.isnan(fit_t_half([4, 16], [np.nan, 0.5]))


def test_frames_of_a_clip_are_no_independent_evidence() -> None:
    """Four copies of every frame: the interval over clips stays what it is without the copies."""
    rng = np.random.default_rng(5)
    scores = simulated(rng, trials=5, frames=20, between=1, within=0.7)
    clips = [f"clip {number}" for number in range(20)]
    once, _ = icc_and_snr_intervals(scores, clips, samples=400, seed=0)
    copies, _ = icc_and_snr_intervals(np.tile(scores, 4), clips * 4, samples=400, seed=0)
    alone = [f"clip {number}" for number in range(80)]
    naive, _ = icc_and_snr_intervals(np.tile(scores, 4), alone, samples=400, seed=0)
    assert np.ptp(copies) == pytest.approx(np.ptp(once), rel=0.1)
    assert np.ptp(naive) < 0.7 * np.ptp(once)
    assert once[0] < reliability(scores).icc < once[1]


def test_intervals_are_repeatable_and_undefined_for_one_clip() -> None:
    scores = simulated(np.random.default_rng(6), trials=3, frames=6, between=1, within=1)
    clips = ["a", "a", "b", "b", "c", "c"]
    first = spearman_interval(scores, clips, samples=50, seed=1)
    assert first == spearman_interval(scores, clips, samples=50, seed=1)
    assert first != spearman_interval(scores, clips, samples=50, seed=2)
    assert np.isnan(icc_and_snr_intervals(scores, ["a"] * 6, samples=50, seed=1)).all()
