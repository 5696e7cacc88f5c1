"""Charts as SVG documents that follow the reader's choice of light or dark."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fvlm.statistics.ratio import DYNAMIC
from fvlm.statistics.tables import RatioRow

# Stand-ins that become variables, so that one picture serves light and dark: (light, dark).
COLOURS = {
    "#010101": ("ink", "#1b1b1b", "#ececec"),
    "#020202": ("muted", "#767676", "#9a9ca2"),
    "#030303": ("accent", "#0b6fa4", "#62bdf0"),
    "#040404": ("second", "#b35300", "#f0a35c"),
}
INK, MUTED, ACCENT, SECOND = COLOURS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fvlm",  # element names are otherwise random
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

Table = Sequence[dict[str, str]]  # rows of a CSV file


class Chart:
    """`svg` is set when the block of `drawing` ends."""

    svg: str = ""


def curves_chart(rows: Table) -> str:
    """Training losses of both passes by clips seen; rows of plots/train.csv."""
    seen = [int(row["samples"]) for row in rows]
    with drawing() as (chart, axes):
        for name, colour, style in (("coarse", SECOND, "--"), ("fine", ACCENT, "-")):
            losses = [float(row[f"loss_{name}"]) for row in rows]
            axes.plot(seen, losses, style, color=colour, lw=1.5, label=f"{name} pass")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel("clips seen")
        axes.set_ylabel("loss on training clips")
        axes.legend(frameon=False)
    return chart.svg


def frames_chart(rows: Table) -> str:
    """Coarse / fine loss at each frame; rows of plots/evaluate_frames.csv."""
    with drawing() as (chart, axes):
        axes.axvspan(0.5, DYNAMIC.start + 0.5, color=MUTED, alpha=0.15, lw=0)
        axes.text(0.6, 0.98, "cannot gain", transform=axes.get_xaxis_transform(), va="top")
        _ratios(axes, [int(row["frame"]) for row in rows], rows, "coarse_fine_ratio")
        axes.set_xlabel("frame of the clip")
    return chart.svg


def motion_chart(rows: Table) -> str:
    """Coarse / fine loss by quartile of motion; rows of plots/evaluate_motion.csv."""
    with drawing() as (chart, axes):
        places = [int(row["quartile"]) for row in rows]
        _ratios(axes, places, rows, "coarse_fine_ratio_dynamic")
        axes.set_xticks(places, [f"{row['quartile']}\n{_clips(row['clips'])}" for row in rows])
        axes.set_xlabel("quartile of motion (1: least)")
    return chart.svg


def controls_chart(rows: Sequence[RatioRow]) -> str:
    """Each loss / fine loss with its interval: all must be above 1 before queries get credit."""
    with drawing(height=0.7 + 0.45 * len(rows)) as (chart, axes):
        axes.axvline(1, color=MUTED, lw=1, ls="--")
        for height, row in enumerate(reversed(rows)):
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [height, height], color=ACCENT, lw=4, alpha=0.45)
            if row.value is not None:
                fill = "none" if row.low is None else ACCENT
                axes.plot(row.value, height, "o", color=ACCENT, mfc=fill, mew=1.5)
        axes.set_yticks(range(len(rows)), [row.meaning.replace(", ", "\n") for row in rows][::-1])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.99), max(high, 1.01))
        axes.set_xlabel("its loss / loss of the fine pass")
    return chart.svg


def _clips(count: str) -> str:
    return "1 clip" if count == "1" else f"{count} clips"


def _ratios(axes: Axes, places: list[int], rows: Table, name: str) -> None:
    """Points with intervals; undefined values are left out.

    A point without an interval is hollow and no line leads to it: it must not look like a trend.
    """
    axes.axhline(1, color=MUTED, lw=1, ls="--")
    joined = [float(row[name]) if row[f"{name}_low"] else math.nan for row in rows]
    axes.plot(places, joined, "o-", color=ACCENT, lw=1.5)
    for x, row in zip(places, rows, strict=True):
        if row[f"{name}_low"]:
            ends = float(row[f"{name}_low"]), float(row[f"{name}_high"])
            axes.plot([x, x], ends, color=ACCENT, lw=4, alpha=0.45)
        elif row[name]:
            axes.plot(x, float(row[name]), "o", color=ACCENT, mfc="none", mew=1.5)
    low, high = axes.get_ylim()
    # A difference in the fifth digit should not look like a result.
    axes.set_ylim(min(low, 0.99), max(high, 1.01))
    axes.set_ylabel("coarse loss / fine loss")


@contextmanager
def drawing(*, height: float = 3.4) -> Iterator[tuple[Chart, Axes]]:
    """Axes whose drawing becomes SVG; the same drawing gives the same text."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, height), layout="constrained")
        FigureCanvasSVG(figure)
        chart = Chart()
        yield chart, figure.add_subplot()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    chart.svg = _adaptive(text.getvalue())


def _adaptive(svg: str) -> str:
    """The same picture with variables for colours, and both sets of values."""
    light = "".join(f"--{name}:{value};" for name, value, _ in COLOURS.values())
    dark = "".join(f"--{name}:{value};" for name, _, value in COLOURS.values())
    for colour, (name, *_) in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    style = f"svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    return svg.replace("</style>", f"{style}</style>", 1)
