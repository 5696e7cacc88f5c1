"""The figures of a calibration from losses that are made up, and what they are accepted for."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fvlm.calibration.trials import (
    PASSES,
    TRIALS,
    Trained,
    Trial,
    failures,
    figures_of,
    measure,
)
from fvlm.statistics.arms import ARMS

CLIPS, T = 40, 6
POSITIVE, NOISE = TRIALS[0], TRIALS[-1]


def losses(**factors: float) -> dict[str, NDArray[np.float64]]:
    """Each arm's loss is that of the coarse pass times its factor, at frames t >= 3 only."""
    base = np.random.default_rng(0).uniform(1, 2, (CLIPS, T))
    made = {}
    for arm in ARMS:
        made[arm] = base.copy()
        made[arm][:, 2:] *= factors.get(arm, 1.0)
    return made


def trained(*, seed: int = 0, **factors: float) -> Trained:
    return Trained(seed, held_out=losses(**factors), seen=losses(fine=0.5))


def figures(*trainings: Trained, trial: Trial = POSITIVE, **options: Any) -> dict[str, Any]:
    found = measure(trainings, **({"samples": 200, "seed": 0} | options))
    return figures_of({trial.name: found})


def test_frame_2_is_the_second_frame() -> None:
    made = trained(fine=0.8)
    made.held_out["fine"][:, 0] *= 3
    made.held_out["fine"][:, 1] *= 0.5
    found = figures(made)
    assert found["positive_control_ratio_frame_2"] == pytest.approx(2)
    assert found["positive_control_ratio"] == pytest.approx(1.25)


def test_ratios_are_over_frames_three_and_later() -> None:
    found = figures(trained(fine=0.8, static_in_fine=1.1, shuffled=2.0))
    assert found["positive_control_ratio"] == pytest.approx(1.25)
    assert found["positive_control_ratio_low"] == pytest.approx(1.25)
    assert found["positive_control_static_in_fine"] == pytest.approx(1 / 1.1)
    assert found["positive_control_shuffled"] == pytest.approx(0.5)
    assert found["positive_control_ratio_training_clips"] == pytest.approx(2)
    assert found["positive_control_ratio_all_frames"] < 1.25
    assert found["positive_control_ratio_frame_2"] == pytest.approx(1)
    for name in ("ratio", "ratio_frame_2", "static_in_fine", "shuffled", "autoregressive"):
        ends = [found[f"positive_control_{name}_{end}"] for end in ("low", "high")]
        assert ends == pytest.approx([found[f"positive_control_{name}"]] * 2)  # no spread
    assert (found["positive_control_videos"], found["positive_control_seeds"]) == (CLIPS, 1)


def test_seeds_are_replicates_of_the_same_videos() -> None:
    """Repeating a training adds nothing to what is known; the interval does not shrink."""
    rng = np.random.default_rng(1)
    one = trained(fine=0.8)
    one.held_out["fine"][:] *= rng.uniform(0.5, 1.5, (CLIPS, 1))
    alone = figures(one, samples=500)
    again = figures(one, one, one, samples=500)
    for end in ("", "_low", "_high"):
        name = f"positive_control_ratio{end}"
        assert again[name] == pytest.approx(alone[name])


def test_each_seed_is_named() -> None:
    found = figures(trained(seed=3, fine=0.5), trained(seed=7, fine=0.8))
    assert found["positive_control_ratio_seed_3"] == pytest.approx(2)
    assert found["positive_control_ratio_seed_7"] == pytest.approx(1.25)
    assert 1.25 < found["positive_control_ratio"] < 2


def test_who_beats_the_mean_has_seen_the_frame() -> None:
    expected = np.ones((CLIPS, T))
    noise = trained()
    for name in PASSES:
        noise.held_out[name] = expected * 1.2
    noise.held_out.update(fine=expected * 0.9, mean=expected)
    found = figures(noise, trial=NOISE)
    assert found["noise_control_gain_coarse"] == pytest.approx(1 / 1.2)
    assert found["noise_control_gain_fine"] == pytest.approx(1 / 0.9)
    assert [line.split()[0] for line in failures(found, [NOISE])] == ["noise_control_gain_fine"]


CHECKED = (TRIALS[0], *TRIALS[3:])
ACCEPTED: dict[str, float | None] = {
    "positive_control_ratio": 1.2,
    "positive_control_ratio_low": 1.1,
    "positive_control_static_in_fine": 1.01,
    "positive_control_shuffled": 0.5,
    "positive_control_ratio_frame_2": 1.01,
    "negative_control_ratio": 1.005,
    "negative_control_static_in_fine": 0.995,
    "negative_control_shuffled": 1.0,
    "negative_control_random": 1.0,
    "noise_control_gain_coarse": 0.99,
    "noise_control_gain_fine": 0.98,
    "noise_control_gain_autoregressive": 1.01,
}


def test_an_accepted_calibration() -> None:
    assert failures(ACCEPTED, CHECKED) == []


def test_what_was_not_measured_is_not_shown() -> None:
    assert len(failures({})) == 3 * 5 + 4 + 3
    for name in ACCEPTED:
        without = {other: value for other, value in ACCEPTED.items() if other != name}
        (line,) = failures(without, CHECKED)
        assert line.startswith(f"{name} is missing, must be ")
        (line,) = failures(ACCEPTED | {name: None}, CHECKED)
        assert line.startswith(f"{name} is undefined, must be ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("positive_control_ratio", 1.14),
        ("positive_control_ratio_low", 1.04),
        ("positive_control_static_in_fine", 1.1),
        ("positive_control_shuffled", 0.95),
        ("positive_control_ratio_frame_2", 1.13),
        ("negative_control_ratio", 1.02),
        ("negative_control_ratio", 0.98),
        ("negative_control_random", 0.95),
        ("noise_control_gain_coarse", 1.02),
    ],
)
def test_each_requirement_is_named_when_it_is_missed(name: str, value: float) -> None:
    (line,) = failures(ACCEPTED | {name: value}, CHECKED)
    assert line.startswith(f"{name} is {value:.4f}, must be ")
