"""Figures from losses that are made up: early frames say the opposite of the later ones."""

from typing import Any

import numpy as np
import pytest

from fvlm.core.document import flatten
from fvlm.statistics.arms import ARMS, CONTROLS, ClipName, Losses
from fvlm.statistics.summary import summarize
from fvlm.statistics.verdict import decide

CLIPS, T = 40, 6
# Each arm's loss at frames t >= 3, relative to that of the coarse pass.
LATER = {"coarse": 1.0, "fine": 0.8, "autoregressive": 0.9, "static_in_fine": 1.1, "shuffled": 1.3}
LATER |= {"random": 1.7, "persistence": 2.0}


def losses(*, early_fine: float = 1.25, **later: float) -> Losses:
    """Frames 1 and 2: the controls are better than the fine pass, which loses to coarse."""
    base = np.random.default_rng(0).uniform(1, 2, (CLIPS, T))
    made = {}
    for arm, factor in (LATER | later).items():
        made[arm] = base * factor
        made[arm][:, :2] = base[:, :2] * (early_fine if arm == "fine" else 0.5)
    made["coarse"][:, :2] = base[:, :2]
    return made


def figures(made: Losses) -> dict[str, Any]:
    clips = [ClipName(f"clip-{number}", f"video {number}") for number in range(CLIPS)]
    found = summarize({0: made}, clips, samples=200, seed=0).held_out
    return {"verdict": decide(found)} | flatten(found)


def test_verdict_and_controls_rest_on_frames_three_and_later() -> None:
    found = figures(losses())
    assert found["verdict"] == "validated"
    assert found["coarse_fine_ratio_dynamic"] == pytest.approx(1 / 0.8)
    assert found["coarse_fine_ratio_early"] == pytest.approx(1 / 1.25)
    for arm in (*CONTROLS, "autoregressive", "persistence"):
        assert found[f"{arm}_fine_ratio_dynamic"] == pytest.approx(LATER[arm] / 0.8)
        assert found[f"ratio_{arm}_dynamic"] == pytest.approx(1 / LATER[arm])
    assert found["ratio_random"] > found["ratio_random_dynamic"]


def test_every_ratio_has_an_interval() -> None:
    found = figures(losses())
    ratios = {name for name in found if f"{name}_low" in found}
    assert len(ratios) == 3 + 2 * (len(ARMS) - 2) + len(ARMS) - 2
    assert not [name for name in found if "ratio" in name and not name.startswith(tuple(ratios))]
    for name in ratios:
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"], name


def test_a_gain_at_frames_that_cannot_gain_is_no_result() -> None:
    """The same ratio at every frame, every control beaten: the coarse pass is handicapped."""
    made = losses(early_fine=0.8)
    assert figures(made)["verdict"] == "inconclusive"
    made["fine"][:, :2] = made["coarse"][:, :2]
    assert figures(made)["verdict"] == "validated"


def test_a_control_that_does_as_well_at_later_frames_is_enough() -> None:
    assert figures(losses(static_in_fine=0.8))["verdict"] == "inconclusive"
