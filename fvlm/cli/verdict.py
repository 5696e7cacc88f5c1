"""Print what was compared and what came out of it: `python -m fvlm.cli.verdict`.

Reads   metrics/filter.json, metrics/train.json, metrics/evaluate.json
"""

from typing import Any

from rich.console import Console
from rich.table import Table

from fvlm.core.io import read_json
from fvlm.core.stage import run
from fvlm.statistics.tables import arm_rows, figure, interval, ratio_rows
from fvlm.statistics.verdict import describe
from pipeline.paths import EVALUATE_METRICS, FILTER_METRICS, PAGE, TRAIN_METRICS

MIN_WIDTH = 100  # columns; in a log there is no terminal to take the width from


def main() -> None:
    """One table of all arms, the ratio with its interval, the verdict, and where the report is."""
    found, console = read_json(EVALUATE_METRICS), Console()
    if not console.is_terminal:
        console = Console(width=MIN_WIDTH)
    console.print(
        scope(found, read_json(FILTER_METRICS), read_json(TRAIN_METRICS)), highlight=False
    )
    console.print(arms_table(found))
    console.print(ratio_table(found))
    console.print(describe(found), style="bold", highlight=False)
    if PAGE.exists():
        console.print(
            f"The report with pictures: {PAGE.resolve()}", highlight=False, soft_wrap=True
        )


def scope(found: dict[str, Any], videos: dict[str, Any], training: dict[str, Any]) -> str:
    """One line: what went in and what was compared."""
    seeds = f", with each of {found['seeds']} seeds" if found["seeds"] > 1 else ""
    return (
        f"{videos['inputs']} videos, {videos['accepted']} accepted; trained on "
        f"{videos['accepted_train']} for {training['steps']} steps{seeds}; "
        f"held-out videos compared: {found['videos']} (clips: {found['clips']})"
    )


def arms_table(found: dict[str, Any]) -> Table:
    """Each arm's loss, and how the coarse loss compares with it."""
    table = Table(
        "arm", title="Mean squared error of the next latent (below coarse: better)", title_style=""
    )
    for heading in ("loss", "coarse / arm, frames 3+", "95% interval"):
        table.add_column(heading, justify="right")
    for row in arm_rows(found):
        table.add_row(row.meaning, figure(row.loss, 5), figure(row.value), interval(row))
    return table


def ratio_table(found: dict[str, Any]) -> Table:
    """The ratio and the controls against the fine pass, each with its interval."""
    table = Table(
        "against the fine pass", title="Loss / fine loss (above 1: the fine pass is better)"
    )
    table.title_style = ""
    for heading in ("ratio", "95% interval", "videos"):
        table.add_column(heading, justify="right")
    for row in ratio_rows(found):
        table.add_row(row.meaning, figure(row.value), interval(row), str(row.videos))
    return table


if __name__ == "__main__":
    run(main)
