"""Print what was compared and what came out of it: `fvlm verdict`.

Reads   metrics/filter.json, metrics/train.json, data/evaluation.json
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fvlm.core.document import read_document
from fvlm.core.io import read_json
from fvlm.core.stage import new_parser
from fvlm.statistics.evaluation import Evaluation
from fvlm.statistics.tables import arm_rows, figure, ratio_cells, ratio_rows
from fvlm.statistics.verdict import (
    count_videos,
    describe,
    describe_gap,
    describe_power,
    describe_skill,
)
from pipeline.paths import EVALUATION, FILTER_METRICS, PAGE, TRAIN_METRICS

MIN_WIDTH = 100  # columns; in a log there is no terminal to take the width from


def command_line() -> ArgumentParser:
    """What the command is given."""
    return new_parser(__doc__, "fvlm verdict")


def main(arguments: Sequence[str]) -> None:
    """One table of all arms, the ratio with its interval, the verdict, and where the report is."""
    command_line().parse_args(arguments)
    evaluation, console = read_document(Evaluation, EVALUATION), Console()
    if not console.is_terminal:
        console = Console(width=MIN_WIDTH)
    console.print(
        scope(evaluation, read_json(FILTER_METRICS), read_json(TRAIN_METRICS)),
        highlight=False,
    )
    console.print(arms_table(evaluation))
    console.print(ratio_table(evaluation))
    console.print(describe(evaluation.held_out), style="bold", highlight=False)
    for say in (describe_skill, describe_gap, describe_power):
        if sentence := say(evaluation.held_out):
            console.print(sentence, highlight=False)
    if PAGE.exists():
        console.print(
            f"The report with pictures: {PAGE.resolve()}", highlight=False, soft_wrap=True
        )


def scope(evaluation: Evaluation, videos: dict[str, Any], training: dict[str, Any]) -> str:
    """One line: what went in and what was compared."""
    found, left_out = evaluation.held_out, evaluation.footage_left_out
    seeds = f", with each of {found.seeds} seeds" if found.seeds > 1 else ""
    return (
        f"{videos['inputs']} videos, {videos['accepted']} accepted; trained on "
        f"{videos['accepted_train']} for {training['steps']} steps{seeds}; "
        f"held-out: {count_videos(found)}"
        + f"; {left_out} clips left out, as their footage was trained on"
        * (left_out > 0)
    )


def arms_table(evaluation: Evaluation) -> Table:
    """Each arm's loss, and how the coarse loss compares with it."""
    table = Table(
        "arm", title="Mean squared error of the next latent (below coarse: better)", title_style=""
    )
    for heading in ("loss", "coarse / arm, frames 3+", "95% interval"):
        table.add_column(heading, justify="right")
    for row in arm_rows(evaluation):
        table.add_row(row.meaning, figure(row.loss, 5), *ratio_cells(row.ratio))
    return table


def ratio_table(evaluation: Evaluation) -> Table:
    """The ratio and the controls against the fine pass, each with its interval."""
    table = Table(
        "against the fine pass", title="Loss / fine loss (above 1: the fine pass is better)"
    )
    table.title_style = ""
    for heading in ("ratio", "95% interval", "videos"):
        table.add_column(heading, justify="right")
    for row in ratio_rows(evaluation):
        table.add_row(row.meaning, *ratio_cells(row.ratio), str(row.videos))
    return table
