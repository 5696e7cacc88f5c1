"""The tables of an evaluation as rows, for the terminal, the page and the card."""

from collections.abc import Sequence
from dataclasses import dataclass

from fvlm.statistics.arms import BASELINES, POOLED, measured_arms
from fvlm.statistics.evaluation import Evaluation, short_meaning
from fvlm.statistics.ratio import Estimate

VERDICT_RESTS_ON = "coarse, frames 3+"


@dataclass(frozen=True)
class ArmRow:
    """An arm's mean loss and coarse / arm loss over frames t >= 3; the coarse pass has no ratio."""

    arm: str
    meaning: str
    loss: float | None
    ratio: Estimate | None


@dataclass(frozen=True)
class RatioRow:
    """A ratio to the loss of the fine pass. arm: whose; videos: of how many.

    seeds: the same of each training, where there are several and it is known.
    """

    arm: str
    meaning: str
    ratio: Estimate
    videos: int
    seeds: tuple[float, ...] = ()


def arm_rows(evaluation: Evaluation) -> list[ArmRow]:
    """Every measured arm."""
    held_out = evaluation.held_out
    return [
        ArmRow(
            arm,
            meaning,
            held_out.arms[arm].loss,
            held_out.coarse_fine_ratio_dynamic
            if arm == "fine"
            else held_out.arms[arm].coarse_ratio_dynamic,
        )
        for arm, meaning in measured_arms(held_out.arms).items()
    ]


def ratio_rows(evaluation: Evaluation) -> list[RatioRow]:
    """The ratio, then what the fine pass is held against, then the same on training clips."""
    found, training = evaluation.held_out, evaluation.on_training_clips
    pooled = [arm for arm in POOLED if arm in found.arms]
    arms = [*found.controls, "autoregressive", *pooled, *BASELINES]
    compared = [
        ("coarse", "coarse, all frames", found.coarse_fine_ratio),
        ("coarse", VERDICT_RESTS_ON, found.coarse_fine_ratio_dynamic),
        ("coarse", "coarse, frames 1 and 2 (cannot gain)", found.coarse_fine_ratio_early),
        ("coarse", "coarse, relative to frame 1 (guard)", found.over_frame_1),
        ("coarse", "coarse, relative to frame 2 (guard)", found.over_frame_2),
        ("coarse", "coarse, CLS masked in both passes, frames 3+", found.cls_masked),
        *((arm, f"{short_meaning(arm)}, frames 3+", found.against(arm)) for arm in arms),
    ]
    if found.captions:
        compared.append(("coarse", "coarse, captions", found.captions.ratio))
    seeds = tuple(ratio.value for ratio in found.by_seed.values() if ratio.value is not None)
    return [
        RatioRow(arm, meaning, ratio, found.videos, seeds if meaning == VERDICT_RESTS_ON else ())
        for arm, meaning, ratio in compared
    ] + [
        RatioRow(arm, f"{short_meaning(arm)} on training clips, frames 3+", ratio, training.videos)
        for arm, ratio in training.against.items()
    ]


def charted(rows: Sequence[RatioRow]) -> list[RatioRow]:
    """Those that a chart shows: baselines lie so far from 1 that the others would fall together."""
    return [row for row in rows if row.arm not in BASELINES]


def figure(value: float | None, digits: int = 4) -> str:
    """A figure as every table shows it."""
    return "-" if value is None else f"{value:.{digits}f}"


def ratio_cells(ratio: Estimate | None) -> list[str]:
    """A ratio and its interval as every table shows them."""
    if ratio is None or ratio.value is None:
        return ["-", "-"]
    ends = "none" if ratio.low is None else f"{figure(ratio.low)} to {figure(ratio.high)}"
    return [figure(ratio.value), ends]
