"""The charts of an evaluation, each drawn once: as a PNG file, or as SVG for the page.

The SVG follows the reader's choice of light or dark. The same figures give the same bytes.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fvlm.core.io import atomic_write
from fvlm.statistics.evaluation import FrameRow, MotionRow
from fvlm.statistics.ratio import DYNAMIC, Estimate
from fvlm.statistics.tables import RatioRow, figure

INK, GREY, BLUE, ORANGE = "#1b1b1b", "#767676", "#0b6fa4", "#b35300"
DARK = {INK: "#ececec", GREY: "#9a9ca2", BLUE: "#62bdf0", ORANGE: "#f0a35c"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fvlm",  # element names are otherwise random
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "xtick.color": INK,
    "ytick.color": INK,
}
PAGE_STYLE = {"figure.facecolor": "none", "axes.facecolor": "none"}

Draw = Callable[[Axes], None]


def write_chart(path: Path, draw: Draw, *, title: str, height: float = 4.5) -> None:
    """Write what `draw` draws as a PNG with a title."""
    with picture(path, height=height) as axes:
        draw(axes)
        axes.set_title(title)


@contextmanager
def picture(path: Path, *, height: float = 4.5) -> Iterator[Axes]:
    """Axes that become a PNG."""
    with mpl.rc_context(STYLE):
        canvas = Figure(figsize=(8, height), dpi=120, layout="constrained")
        FigureCanvasAgg(canvas)
        yield canvas.add_subplot()
        with atomic_write(path) as file:
            canvas.savefig(file, format="png", metadata={"Software": None})


def svg_chart(draw: Draw, *, height: float = 3.4) -> str:
    """What `draw` draws as an SVG document."""
    with mpl.rc_context(STYLE | PAGE_STYLE):
        canvas = Figure(figsize=(5.4, height), layout="constrained")
        draw(canvas.add_subplot())
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    schemes = ("", ""), ("@media (prefers-color-scheme:dark){", "}")
    for number, light in enumerate(DARK):
        svg = svg.replace(light, f"var(--c{number})")
    style = "".join(
        f"{before}svg{{"
        + "".join(f"--c{n}:{colours[scheme]};" for n, colours in enumerate(DARK.items()))
        + f"}}{after}"
        for scheme, (before, after) in enumerate(schemes)
    )
    return svg.replace("</style>", f"{style}</style>", 1)


def draw_curves(
    axes: Axes, rows: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]
) -> None:
    """Losses of both passes by clips seen; rows of plots/train.csv and plots/validation.csv."""
    for name, colour, style in (("coarse", ORANGE, "--"), ("fine", BLUE, "-")):
        for shown, mark, of in ((rows, style, ""), (held_out, f"o{style}", ", held-out clips")):
            if shown:
                seen = [int(row["samples"]) for row in shown]
                losses = [float(row[f"loss_{name}"]) for row in shown]
                label = f"{name} pass{of}"
                axes.plot(seen, losses, mark, color=colour, lw=1.5, ms=4, mfc="none", label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("clips seen")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)


def draw_frames(axes: Axes, rows: Sequence[FrameRow]) -> None:
    """Coarse / fine loss at each frame; frames 1 and 2 cannot gain and are set apart."""
    axes.axvspan(0.5, DYNAMIC.start + 0.5, color=GREY, alpha=0.15, lw=0)
    axes.text(0.6, 0.98, "cannot gain", transform=axes.get_xaxis_transform(), va="top")
    _draw_series(axes, {row.frame: row.ratio for row in rows})
    axes.set_xlim(0.5, len(rows) + 0.5)
    axes.set_xlabel("frame of the clip")


def draw_motion(axes: Axes, rows: Sequence[MotionRow]) -> None:
    """Coarse / fine loss over frames t >= 3 in the quartiles of motion."""
    _draw_series(axes, {row.quartile: row.ratio for row in rows})
    labels = [f"{row.quartile}\n{counted(row.clips, 'clip')}" for row in rows]
    axes.set_xticks([row.quartile for row in rows], labels)
    axes.set_xlim(0.5, 4.5)
    axes.set_xlabel("quartile of motion (1: least)")


def draw_controls(axes: Axes, rows: Sequence[RatioRow]) -> None:
    """Each loss / fine loss with its interval: all must be above 1 before queries get credit.

    Small rings below a point: the same of each training, where there are several.
    """
    axes.axvline(1, color=GREY, lw=1, ls="--")
    for height, row in enumerate(reversed(rows)):
        ratio, colour = row.ratio, BLUE if row.arm == "coarse" else ORANGE
        if ratio.low is not None and ratio.high is not None:
            axes.plot([ratio.low, ratio.high], [height, height], color=colour, lw=4, alpha=0.45)
        if row.seeds:
            below = [height - 0.22] * len(row.seeds)
            axes.plot(row.seeds, below, "o", color=GREY, mfc="none", ms=4)
        if ratio.value is None:
            axes.annotate("undefined", (1, height), color=GREY, va="center")
            continue
        fill = "none" if ratio.low is None else colour
        axes.plot(ratio.value, height, "o", color=colour, mfc=fill, mew=1.5)
        label = figure(ratio.value)
        axes.annotate(
            label, (ratio.value, height), (0, 7), textcoords="offset points", ha="center", size=9
        )
    axes.set_yticks(range(len(rows)), [row.meaning.replace(", ", "\n") for row in rows][::-1])
    axes.set_ylim(-0.6, len(rows) - 0.3)
    axes.set_xlim(*_at_least(*axes.get_xlim()))
    axes.set_xlabel("its loss / loss of the fine pass")


def controls_height(rows: Sequence[RatioRow]) -> float:
    """Inches that let the labels of `draw_controls` stand apart."""
    return 0.8 + 0.5 * len(rows)


def counted(count: int, what: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"1 {what}" if count == 1 else f"{count} {what}s"


def _draw_series(axes: Axes, ratios: Mapping[int, Estimate]) -> None:
    """Points with intervals, joined; undefined values are left out.

    A point without an interval is hollow and no line leads to it: it must not look like a trend.
    """
    axes.axhline(1, color=GREY, lw=1, ls="--")
    joined = [math.nan if r.low is None or r.value is None else r.value for r in ratios.values()]
    axes.plot(list(ratios), joined, "o-", color=BLUE, lw=1.5)
    for place, ratio in ratios.items():
        if ratio.low is not None and ratio.high is not None:
            axes.plot([place, place], [ratio.low, ratio.high], color=BLUE, lw=4, alpha=0.45)
        elif ratio.value is not None:
            axes.plot(place, ratio.value, "o", color=BLUE, mfc="none", mew=1.5)
    axes.set_ylim(*_at_least(*axes.get_ylim()))
    axes.set_ylabel("coarse loss / fine loss (95% interval)")


def _at_least(low: float, high: float) -> tuple[float, float]:
    """Limits that hold 1 +- 1%: a difference in the fifth digit should not look like a result."""
    return min(low, 0.99), max(high, 1.01)
