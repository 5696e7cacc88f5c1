"""The tables of an evaluation as rows, from its flat metrics; for the terminal and for the page."""

from dataclasses import dataclass
from typing import Any

from fvlm.statistics.arms import MEANINGS, measured_arms, measured_controls
from fvlm.statistics.ratio import Estimate, estimate_in


@dataclass(frozen=True)
class ArmRow:
    """An arm's mean loss, and coarse / arm loss over frames t >= 3 with the ends of its interval.

    None: undefined; the coarse pass itself has neither ratio nor interval.
    """

    arm: str
    meaning: str
    loss: float | None
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RatioRow:
    """A ratio to the loss of the fine pass with the ends of its 95% interval; None: undefined."""

    meaning: str
    name: str
    value: float | None
    low: float | None
    high: float | None
    videos: int


def arm_rows(found: dict[str, Any]) -> list[ArmRow]:
    """Every measured arm; `found` is metrics/evaluate.json."""
    rows = []
    for arm, meaning in measured_arms(_arms_in(found)).items():
        name = "coarse_fine_ratio_dynamic" if arm == "fine" else f"ratio_{arm}_dynamic"
        ratio = Estimate(None, None, None) if arm == "coarse" else estimate_in(found, name)
        loss = found[f"loss_{arm}"]
        rows.append(ArmRow(arm, meaning, loss, ratio.value, ratio.low, ratio.high))
    return rows


def ratio_rows(found: dict[str, Any]) -> list[RatioRow]:
    """The ratio, then what the fine pass is held against, then the ratio on training clips."""
    named = {
        "coarse_fine_ratio": "coarse, all frames",
        "coarse_fine_ratio_dynamic": "coarse, frames 3+",
        "coarse_fine_ratio_early": "coarse, frames 1 and 2 (cannot gain)",
    }
    for arm in measured_controls(_arms_in(found)):
        meaning = MEANINGS[arm].removeprefix("fine pass with ")
        named[f"{arm}_fine_ratio_dynamic"] = f"{meaning}, frames 3+"
    named["autoregressive_fine_ratio_dynamic"] = "frame by frame, frames 3+ (train/inference gap)"
    named["persistence_fine_ratio_dynamic"] = "copy of the previous latent, frames 3+"
    named["train_coarse_fine_ratio_dynamic"] = "coarse on training clips, frames 3+"
    rows = []
    for name, meaning in named.items():
        ratio = estimate_in(found, name)
        videos = found["train_videos" if name.startswith("train") else "videos"]
        rows.append(RatioRow(meaning, name, ratio.value, ratio.low, ratio.high, videos))
    return rows


def _arms_in(found: dict[str, Any]) -> set[str]:
    return {name.removeprefix("loss_") for name in found if name.startswith("loss_")}


def figure(value: float | None, digits: int = 4) -> str:
    """A figure as every table shows it."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(row: ArmRow | RatioRow) -> str:
    """The interval as every table shows it."""
    if row.value is None:
        return "-"
    return "none" if row.low is None else f"{figure(row.low)} to {figure(row.high)}"
