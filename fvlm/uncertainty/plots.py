"""Pictures of an uncertainty run: how many passes a score needs, and what it is high and low on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fvlm.io import atomic_write
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

    rows: `variant`, `passes`, `icc`, `icc_low`, `icc_high` of every snapshot.
    """
    with _picture(path, (8, 4.5)) as figure:
        axes = figure.add_subplot()
        largest = max(row["passes"] for row in rows)
        grid = np.geomspace(1, 2 * largest, 200)
        axes.axhline(0.75, color=GREY, lw=1, ls="--")
        axes.annotate("usable from 0.75", (1.02, 0.76), color=GREY)
        for number, variant in enumerate(VARIANTS):
            own = [row for row in rows if row["variant"] == variant]
            # Side by side: the two variants often agree.
            passes = np.array([row["passes"] for row in own]) * (0.98, 1.02)[number]
            icc = np.array([row["icc"] for row in own])
            ends = [np.array([row[name] for row in own]) for name in ("icc_low", "icc_high")]
            half, colour = t_half[variant], COLOURS[variant]
            axes.vlines(passes, ends[0], ends[1], color=colour, lw=3, alpha=0.4)
            label = f"{MEANINGS[variant]}: half at {half:.1f} passes"
            axes.plot(passes, icc, "o", color=colour, label=label)
            axes.plot(grid, icc_curve(grid, half), color=colour, lw=1.5)
        axes.set_xscale("log", base=2)
        ticks = sorted({row["passes"] for row in rows})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlim(1, 2 * largest)
        axes.set_ylim(min(0, *axes.get_ylim()), 1.02)
        axes.set_xlabel("passes")
        axes.set_ylabel("ICC of one trial (95% interval)")
        axes.set_title(title)
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
    shown = min(2 * COLUMNS, len(scores) // 2) or 1
    order = np.argsort(scores, kind="stable")
    relative = scores / np.median(scores)
    parts = (("Most certain", order[:shown]), ("Least certain", order[::-1][:shown]))
    rows = -(-shown // COLUMNS)
    with _picture(path, (12, 1.1 + 2 * rows * 1.75), dpi=80) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        halves: Any = figure.subfigures(2, 1)
        for part, (heading, chosen) in zip(halves, parts, strict=True):
            part.suptitle(heading, x=0.01, ha="left", fontsize=11)
            cells = part.subplots(rows, COLUMNS, squeeze=False).flat
            for place, axes in enumerate(cells):
                axes.set_axis_off()
                if place < len(chosen):
                    frame = int(chosen[place])
                    axes.imshow(frames[frame].transpose(1, 2, 0))
                    label = f"{relative[frame]:.2f}x\n{_short(names[frame])}"
                    axes.set_title(label, fontsize=7, loc="center")


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
