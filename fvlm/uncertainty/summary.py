"""From scores to flat metrics and rows of tables.

Axes: S snapshots, K trials, N frames.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvlm.uncertainty.moments import VARIANTS
from fvlm.uncertainty.reliability import (
    fit_t_half,
    icc_and_snr_intervals,
    icc_curve,
    reliability,
    spearman_interval,
)
from fvlm.uncertainty.sampling import UncertaintyParams
from fvlm.uncertainty.validity import compare

Row = dict[str, Any]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class FrameName:
    """A stored frame: its clip's key and video, and its number there, from 0."""

    clip: str
    video_id: str
    number: int

    @property
    def sample(self) -> str:
        """What its masks depend on: neither its place in a batch nor the other frames."""
        return f"{self.clip}:{self.number}"


@dataclass(frozen=True)
class Summary:
    """`metrics` are flat; `by_passes` has one row a snapshot, `frames` one a frame."""

    metrics: dict[str, float | int | str | None]
    t_half: dict[str, float]
    by_passes: list[Row]
    frames: list[Row]


def summarize(
    scores: Scores,
    changed: dict[str, Scores],
    names: Sequence[FrameName],
    params: UncertaintyParams,
) -> Summary:
    """Figures of scores [2,S,K,N], and of `changed` frames (by kind of change) [2,S,1,N].

    Metrics are those of all passes. Values that are not defined are None.
    """
    clips = [name.clip for name in names]
    metrics: Row = {"frames": len(names), "clips": len(set(clips))}
    metrics |= {"trials": params.trials, "passes": params.passes}
    t_half: dict[str, float] = {}
    by_passes: list[Row] = [{"passes": passes} for passes in params.counts]
    for number, variant in enumerate(VARIANTS):
        tables = scores[number]
        found = [reliability(table) for table in tables]
        t_half[variant] = fit_t_half(params.counts, [one.icc for one in found])
        curve = icc_curve(np.array(params.counts, float), t_half[variant])
        figures: Row = {}
        for row, one, table, fitted in zip(by_passes, found, tables, curve, strict=True):
            figures = {"verdict": one.verdict} | asdict(one) | _intervals(table, clips, params)
            own = figures | {"icc_fitted": float(fitted)}
            row.update({f"{name}_{variant}": value for name, value in own.items()})
        figures |= {"t_half": t_half[variant]}  # those of all passes, the last
        for kind, others in changed.items():
            pairs = compare(tables[-1, 0], others[number, -1, 0], clips)
            figures |= {f"{kind}_{name}": value for name, value in asdict(pairs).items()}
        metrics |= {f"{variant}_{name}": value for name, value in figures.items()}
    rows = [_frame_row(scores, changed, names, index) for index in range(len(names))]
    return Summary(_defined(metrics), t_half, [_defined(row) for row in by_passes], rows)


def _intervals(scores: Scores, clips: Sequence[str], params: UncertaintyParams) -> Row:
    """Ends of the 95% intervals over clips, by figure."""
    drawn = {"samples": params.bootstrap_samples, "seed": params.seed}
    icc, snr = icc_and_snr_intervals(scores, clips, **drawn)
    found = {"icc": icc, "spearman_median": spearman_interval(scores, clips, **drawn), "snr": snr}
    return {
        f"{name}_{end}": value
        for name, ends in found.items()
        for end, value in zip(("low", "high"), ends, strict=True)
    }


def _frame_row(
    scores: Scores, changed: dict[str, Scores], names: Sequence[FrameName], index: int
) -> Row:
    """Mean and deviation over trials of one frame's scores, and the scores of its pairs."""
    name = names[index]
    row: Row = {"clip": name.clip, "video_id": name.video_id, "frame": name.number}
    for number, variant in enumerate(VARIANTS):
        own = scores[number, -1, :, index]
        row[f"{variant}_mean"], row[f"{variant}_sd"] = float(own.mean()), float(own.std(ddof=1))
        for kind, others in changed.items():
            row[f"{variant}_{kind}"] = float(others[number, -1, 0, index])
    return row


def _defined(row: Row) -> Row:
    """Six digits; JSON knows no NaN and no infinity: they become None."""
    return {
        name: _rounded(value) if isinstance(value, float) else value for name, value in row.items()
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
