"""The tables of an evaluation as rows, from its flat metrics; for the terminal and for the page."""

from dataclasses import dataclass
from typing import Any

from fvlm.evaluation.arms import MEANINGS, measured_arms, measured_controls


@dataclass(frozen=True)
class ArmRow:
    """An arm's mean loss, and how the coarse loss compares with it; None: undefined."""

    arm: str
    meaning: str
    loss: float | None
    overall: float | None
    dynamic: float | None


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
        name = "coarse_fine_ratio" if arm == "fine" else f"ratio_{arm}"
        ratios = (1.0, 1.0) if arm == "coarse" else (found[name], found[f"{name}_dynamic"])
        rows.append(ArmRow(arm, meaning, found[f"loss_{arm}"], *ratios))
    return rows


def ratio_rows(found: dict[str, Any]) -> list[RatioRow]:
    """The ratio, the controls against the fine pass, and the ratio on training clips."""
    named = {
        "coarse_fine_ratio": "coarse, all frames",
        "coarse_fine_ratio_dynamic": "coarse, frames 3+",
    }
    for arm in measured_controls(_arms_in(found)):
        meaning = MEANINGS[arm].removeprefix("fine pass with ")
        named[f"{arm}_fine_ratio_dynamic"] = f"{meaning}, frames 3+"
    named["train_coarse_fine_ratio_dynamic"] = "coarse on training clips, frames 3+"
    return [
        RatioRow(
            meaning,
            name,
            found[name],
            found[f"{name}_low"],
            found[f"{name}_high"],
            found["train_videos" if name.startswith("train") else "videos"],
        )
        for name, meaning in named.items()
    ]


def _arms_in(found: dict[str, Any]) -> set[str]:
    return {name.removeprefix("loss_") for name in found if name.startswith("loss_")}


def figure(value: float | None, digits: int = 4) -> str:
    """A figure as every table shows it."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(row: RatioRow) -> str:
    """The interval as every table shows it."""
    return "none" if row.low is None else f"{figure(row.low)} to {figure(row.high)}"
