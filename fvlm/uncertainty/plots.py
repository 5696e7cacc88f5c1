"""Pictures of an uncertainty run: how many passes a score needs, and what it is high and low on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fvlm.core.io import atomic_write
from fvlm.uncertainty.moments import VARIANTS
from fvlm.uncertainty.reliability import icc_curve

INK, GREY = "#1b1b1b", "#8a8a8a"
COLOURS = {"pre": "#0b6fa4", "post": "#c25a00"}
MEANINGS = {"pre": "raw embedding", "post": "normalised embedding"}
COLUMNS = 8  # frames a row of the sheet
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "text.color": INK,
}


def plot_icc(
    rows: Sequence[dict[str, Any]], t_half: dict[str, float], path: Path, *, title: str
) -> None:
    """ICC at every number of passes with its F interval, and the curve T / (T + T_half).

    rows: `passes`, and `icc`, `icc_low`, `icc_high` of every variant, one row a snapshot.
    """
    with _picture(path, (8, 4.5)) as figure:
        draw_icc(figure.add_subplot(), rows, t_half)
        figure.axes[0].set_title(title)


def draw_icc(axes: Axes, rows: Sequence[dict[str, Any]], t_half: dict[str, float]) -> None:
    """The inside of `plot_icc`: each variant's points, then its curve."""
    counts = np.array([row["passes"] for row in rows])
    grid = np.geomspace(1, 2 * counts[-1], 200)
    axes.axhline(0.75, color=GREY, lw=1, ls="--")
    axes.annotate("usable from 0.75", (1.02, 0.76), color=GREY)
    # Side by side: the two variants often agree.
    for variant, shift in zip(VARIANTS, (0.98, 1.02), strict=True):
        icc, low, high = (
            np.array([row[f"{name}_{variant}"] for row in rows], float)  # None becomes NaN
            for name in ("icc", "icc_low", "icc_high")
        )
        half, colour = t_half[variant], COLOURS[variant]
        axes.vlines(shift * counts, low, high, color=colour, lw=3, alpha=0.4)
        label = f"{MEANINGS[variant]}: half at {half:.1f} passes"
        axes.plot(shift * counts, icc, "o", color=colour, label=label)
        axes.plot(grid, icc_curve(grid, half), color=colour, lw=1.5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlim(1, 2 * counts[-1])
    axes.set_ylim(min(0, *axes.get_ylim()), 1.02)
    axes.set_xlabel("passes")
    axes.set_ylabel("ICC of one trial (95% interval)")
    axes.legend(frameon=False, loc="lower right")


def plot_sheet(
    frames: NDArray[np.uint8],
    scores: NDArray[np.float64],
    names: Sequence[str],
    path: Path,
    *,
    title: str,
) -> None:
    """The least and the most certain frames, each with its score relative to the median.

    frames: uint8 [N,3,S,S]. scores: float64 [N].
    """
    relative = scores / np.median(scores)
    parts = extremes(scores)
    rows = -(-len(parts["Most certain"]) // COLUMNS)
    with _picture(path, (12, 1.1 + 2 * rows * 1.75), dpi=80) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        halves: Any = figure.subfigures(2, 1)
        for part, (heading, chosen) in zip(halves, parts.items(), strict=True):
            part.suptitle(heading, x=0.01, ha="left", fontsize=11)
            cells = part.subplots(rows, COLUMNS, squeeze=False).flat
            for place, axes in enumerate(cells):
                axes.set_axis_off()
                if place < len(chosen):
                    frame = int(chosen[place])
                    axes.imshow(frames[frame].transpose(1, 2, 0))
                    label = f"{relative[frame]:.2f}x\n{_short(names[frame])}"
                    axes.set_title(label, fontsize=7, loc="center")


def extremes(scores: NDArray[np.float64]) -> dict[str, NDArray[np.intp]]:
    """Frames with the lowest scores, from there upwards, and with the highest, downwards."""
    shown = min(2 * COLUMNS, len(scores) // 2) or 1
    order = np.argsort(scores, kind="stable")
    return {"Most certain": order[:shown], "Least certain": order[::-1][:shown]}


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"...{name[-23:]}"


@contextmanager
def _picture(path: Path, inches: tuple[float, float], *, dpi: int = 120) -> Iterator[Figure]:
    """A figure that becomes a PNG; the same figures give the same bytes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=inches, dpi=dpi, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_write(path) as file:
            figure.savefig(file, format="png", metadata={"Software": None})
