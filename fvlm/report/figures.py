"""Every figure of a run as one table, for those who count on with them."""

from collections.abc import Mapping
from typing import Any

from fvlm.core.document import flatten
from fvlm.report.page import Report


def figure_rows(report: Report) -> list[dict[str, Any]]:
    """Every figure of a run in full, one a row: table, row of it (empty: it has one), name, value.

    Tables are named after the files that the figures are from.
    """
    single: dict[str, Mapping[str, Any]] = {
        "evaluate": flatten(report.evaluation),
        "train": report.training,
        "filter": report.filtering,
        "decode": report.decoding,
        "parameters": report.parameters,
        "flops": {f"clip_of_{report.clip_frames}_frames": report.flops}
        | {f"{arm}_clip": flops for arm, flops in report.pooled_flops.items()},
    }
    tables: dict[str, Mapping[str, Mapping[str, Any]]] = {
        "evaluate by frame": {str(row.frame): flatten(row) for row in report.frames},
        "evaluate by motion": {str(row.quartile): flatten(row) for row in report.motion},
        "evaluate by clip": {row.key: flatten(row) for row in report.by_clip},
        "train by clips seen": {str(row["samples"]): row for row in report.curves},
        "held-out clips by clips seen": {str(row["samples"]): row for row in report.validation},
    }
    every = {**{name: {"": figures} for name, figures in single.items()}, **tables}
    return [
        {"table": table, "row": row, "figure": name, "value": value}
        for table, rows in every.items()
        for row, figures in rows.items()
        for name, value in figures.items()
    ]
