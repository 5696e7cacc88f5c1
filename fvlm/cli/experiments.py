"""Print what each experiment changed and what came out of it: `fvlm experiments`.

Reads   what `dvc exp show` knows: the workspace, the present commit, and its experiments; MLflow

DVC's own table shows much the same with a command that docs/scale.md names.
"""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fvlm.core.params import PARAMS, read_yaml
from fvlm.core.stage import new_parser
from fvlm.tracking.runs import run_names
from pipeline.paths import EVALUATE_METRICS

WIDTH = 160  # columns


def command_line() -> ArgumentParser:
    """What the command is given."""
    return new_parser(__doc__, "fvlm experiments")


def main(arguments: Sequence[str]) -> None:
    """One row an experiment, below the commit that it started from."""
    command_line().parse_args(arguments)
    import dvc.api  # takes seconds

    table = Table(title="Coarse / fine loss, frames 3 and later (95% interval)")
    for heading in ("experiment", "commit", "result", "MLflow run", "parameters that differ"):
        table.add_column(heading, no_wrap=heading == "commit", overflow="fold")
    for row in experiment_rows(dvc.api.exp_show(), list(read_yaml(PARAMS)), run_names()):
        table.add_row(*row)
    Console(width=WIDTH).print(table, highlight=False)


def experiment_rows(
    shown: Sequence[Mapping[str, Any]], sections: Sequence[str], runs: Mapping[str, str]
) -> list[list[str]]:
    """Cells of the table, from the rows of `dvc.api.exp_show`.

    sections: of params.yaml; runs: names of MLflow runs by the weights that were evaluated. Each
    experiment is held against its commit, the workspace against the newest commit.
    """
    commits = [row for row in shown if row["typ"] == "baseline" and row["rev"] != "workspace"]
    rows, base = [], commits[0] if commits else {}
    for row in shown:
        if row in commits:
            base = row
        changes = _changes(row, base, sections) if row is not base else ""
        rows.append([*_cells(row, runs), changes])
    return rows


def _cells(row: Mapping[str, Any], runs: Mapping[str, str]) -> list[str]:
    def figure(name: str) -> Any:
        return row.get(name, row.get(f"{EVALUATE_METRICS}:{name}"))

    return [
        str(row["Experiment"] or row["rev"]),
        str(row["rev"])[:9] if row["Experiment"] else "",
        str(figure("statement") or row["State"] or "-"),
        runs.get(str(figure("weights")), "-"),
    ]


def _changes(row: Mapping[str, Any], base: Mapping[str, Any], sections: Sequence[str]) -> str:
    names = {name for name in (*row, *base) if _bare(name).split(".")[0] in sections}
    differ = sorted(name for name in names if row.get(name) != base.get(name))
    return ", ".join(f"{_bare(name)} {base.get(name)} -> {row.get(name)}" for name in differ)


def _bare(name: str) -> str:
    """Of a parameter, which DVC names with its file where two files have it."""
    return name.removeprefix(f"{PARAMS}:")
