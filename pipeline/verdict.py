"""Print what was compared and what came out of it: `python -m pipeline.verdict`.

Reads   metrics/filter.json, metrics/train.json, metrics/evaluate.json
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fvlm.evaluation.arms import ARMS, CONTROLS
from fvlm.io import read_json
from pipeline.stage import run

FILTER, TRAIN = Path("metrics/filter.json"), Path("metrics/train.json")
EVALUATE = Path("metrics/evaluate.json")
MIN_WIDTH = 100  # columns; in a log there is no terminal to take the width from


def main() -> None:
    """One table of all arms, the ratio with its interval, and the verdict."""
    found, console = read_json(EVALUATE), Console()
    if not console.is_terminal:
        console = Console(width=MIN_WIDTH)
    console.print(scope(found, read_json(FILTER), read_json(TRAIN)), highlight=False)
    console.print(arms_table(found))
    console.print(ratio_table(found))
    console.print(found["statement"], style="bold", highlight=False)


def scope(found: dict[str, Any], videos: dict[str, Any], training: dict[str, Any]) -> str:
    """One line: what went in and what was compared."""
    return (
        f"{videos['inputs']} videos, {videos['accepted']} accepted; trained on "
        f"{videos['accepted_train']} for {training['steps']} steps; "
        f"held-out videos compared: {found['videos']} (clips: {found['clips']})"
    )


def arms_table(found: dict[str, Any]) -> Table:
    """Each arm's loss, and how the coarse loss compares with it."""
    table = Table(
        "arm", title="Mean squared error of the next latent (below coarse: better)", title_style=""
    )
    for heading in ("loss", "coarse / arm", "coarse / arm, frames 3+"):
        table.add_column(heading, justify="right")
    for arm, meaning in ARMS.items():
        ratios = {"coarse": (1.0, 1.0), "fine": _pair(found, "coarse_fine_ratio")}
        overall, dynamic = ratios.get(arm) or _pair(found, f"ratio_{arm}")
        table.add_row(meaning, _text(found[f"loss_{arm}"], 5), _text(overall), _text(dynamic))
    return table


def ratio_table(found: dict[str, Any]) -> Table:
    """The ratio and the controls against the fine pass, each with its interval."""
    table = Table(
        "against the fine pass", title="Loss / fine loss (above 1: the fine pass is better)"
    )
    table.title_style = ""
    for heading in ("ratio", "95% interval", "videos"):
        table.add_column(heading, justify="right")
    rows = [("coarse, all frames", "coarse_fine_ratio")]
    rows += [("coarse, frames 3+", "coarse_fine_ratio_dynamic")]
    rows += [
        (f"{ARMS[arm].removeprefix('fine pass with ')}, frames 3+", f"{arm}_fine_ratio_dynamic")
        for arm in CONTROLS
    ]
    for title, name in rows:
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        ends = "none" if low is None else f"{low:.4f} to {high:.4f}"
        table.add_row(title, _text(found[name]), ends, str(found["videos"]))
    return table


def _pair(found: dict[str, Any], name: str) -> tuple[float | None, float | None]:
    """The value over all frames and over frames t >= 3."""
    return found[name], found[f"{name}_dynamic"]


def _text(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    run(main)
