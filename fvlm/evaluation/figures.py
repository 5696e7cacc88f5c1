"""Pictures of an evaluation: each shows the ratio with its interval and the number of videos."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fvlm.core.io import atomic_write
from fvlm.statistics.arms import CONTROLS, MEANINGS, OPTIONAL_ARMS
from fvlm.statistics.ratio import DYNAMIC
from fvlm.statistics.summary import Row, Summary

INK, BLUE, ORANGE, GREY = "#1b1b1b", "#0b6fa4", "#c25a00", "#8a8a8a"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
}


def plot_ratio_by_frame(summary: Summary, path: Path) -> None:
    """Coarse / fine loss at each frame index; frames 1 and 2 cannot gain and are set apart."""
    with picture(path) as axes:
        _no_difference(axes)
        axes.axvspan(0.5, DYNAMIC.start + 0.5, color=GREY, alpha=0.15, lw=0)
        axes.annotate(
            "cannot gain", (0.6, 1), xycoords=("data", "axes fraction"), va="top", color=GREY
        )
        defined = [row for row in summary.frames if row["coarse_fine_ratio"] is not None]
        _estimates(axes, [row["frame"] for row in defined], defined, "coarse_fine_ratio")
        axes.set_xlim(0.5, len(summary.frames) + 0.5)
        axes.set_xlabel("frame of the clip")
        _label_ratio(axes, summary, "Ratio by frame")


def plot_ratio_by_motion(summary: Summary, path: Path) -> None:
    """Coarse / fine loss over frames t >= 3 in the quartiles of motion."""
    with picture(path) as axes:
        _no_difference(axes)
        name = "coarse_fine_ratio_dynamic"
        defined = [row for row in summary.motion if row[name] is not None]
        _estimates(axes, [row["quartile"] for row in defined], defined, name)
        axes.set_xticks(
            [row["quartile"] for row in summary.motion],
            [
                f"{_QUARTILES[row['quartile'] - 1]}\n{counted(row['clips'], 'clip')}"
                for row in summary.motion
            ],
        )
        axes.set_xlim(0.5, 4.5)
        axes.set_xlabel("motion of the clip (quartile of its persistence error)")
        _label_ratio(axes, summary, "Ratio by motion, frames 3 and later")


def plot_arms(summary: Summary, path: Path) -> None:
    """The ratio and, below it, each control / fine loss: all must be above 1 to validate."""
    rows = [("coarse", "coarse_fine_ratio_dynamic")]
    rows += [(name, f"{name}_fine_ratio_dynamic") for name in (*CONTROLS, *OPTIONAL_ARMS)]
    metrics = summary.metrics
    rows = [(arm, name) for arm, name in rows if name in metrics]
    with picture(path) as axes:
        axes.axvline(1, color=GREY, lw=1, ls="--")
        for height, (arm, name) in enumerate(reversed(rows)):
            value, low, high = (metrics[f"{name}{end}"] for end in ("", "_low", "_high"))
            colour = BLUE if arm == "coarse" else ORANGE
            if low is not None:
                axes.plot([low, high], [height, height], color=colour, lw=3, alpha=0.5)
            if value is None:
                axes.annotate("undefined", (1, height), color=GREY, va="center")
            else:
                axes.plot(value, height, "o", color=colour)
                axes.annotate(
                    f"{value:.4f}", (value, height), (0, 8), textcoords="offset points", ha="center"
                )
        axes.set_yticks(
            range(len(rows)), [MEANINGS[arm].replace(": ", ":\n") for arm, _ in rows[::-1]]
        )
        axes.set_ylim(-0.5, len(rows) - 0.3)
        axes.set_xlim(*_at_least(*axes.get_xlim()))
        axes.set_xlabel("its loss / loss of the fine pass, frames 3 and later (95% interval)")
        axes.set_title(f"Does the fine pass beat it?  {_videos(summary)}: {metrics['verdict']}")


_QUARTILES = ("least", "less", "more", "most")


def _estimates(axes: Axes, places: list[int], rows: list[Row], name: str) -> None:
    """Points with their intervals, joined; those without an interval hollow and for themselves."""
    points = [
        (place, row[name], row[f"{name}_low"], row[f"{name}_high"])
        for place, row in zip(places, rows, strict=True)
    ]
    bounded = [point for point in points if point[2] is not None]
    alone = [point for point in points if point[2] is None]
    axes.plot([p[0] for p in bounded], [p[1] for p in bounded], "o-", color=BLUE, lw=1.5)
    axes.plot([p[0] for p in alone], [p[1] for p in alone], "o", color=BLUE, mfc="none")
    ends = [p[2] for p in bounded], [p[3] for p in bounded]
    axes.vlines([p[0] for p in bounded], *ends, color=BLUE, lw=3, alpha=0.4)


def _no_difference(axes: Axes) -> None:
    axes.axhline(1, color=GREY, lw=1, ls="--")


def _label_ratio(axes: Axes, summary: Summary, title: str) -> None:
    axes.set_ylabel("coarse loss / fine loss (95% interval)")
    axes.set_ylim(*_at_least(*axes.get_ylim()))
    axes.set_title(f"{title}  ({_videos(summary)}; above 1: the fine pass is better)")


def _at_least(low: float, high: float) -> tuple[float, float]:
    """Limits that hold 1 +- 1%: a difference in the fifth digit should not look like a result."""
    return min(low, 0.99), max(high, 1.01)


def _videos(summary: Summary) -> str:
    return counted(summary.metrics["videos"], "video")


def counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"


@contextmanager
def picture(path: Path) -> Iterator[Axes]:
    """Axes that become a PNG; the same figures give the same bytes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.add_subplot()
        with atomic_write(path) as file:
            figure.savefig(file, format="png", metadata={"Software": None})
