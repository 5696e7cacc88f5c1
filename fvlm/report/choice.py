"""Which clips a report shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from fvlm.core.params import Params
from fvlm.statistics.evaluation import ClipRow
from fvlm.statistics.verdict import ROUNDING


class ReportParams(Params):
    """Section `report` of params.yaml."""

    clips: int = Field(ge=1)


@dataclass(frozen=True)
class Chosen:
    """A clip to show: its sample key, why it is shown, coarse / fine loss over frames t >= 3."""

    key: str
    place: str
    ratio: float


def choose_clips(rows: Sequence[ClipRow], count: int) -> list[Chosen]:
    """The `count` best and worst clips by their ratio, best first."""
    ratios = {row.key: row.coarse_fine_ratio_dynamic for row in rows}
    ranked = sorted(
        ((key, ratio) for key, ratio in ratios.items() if ratio), key=lambda clip: -clip[1]
    )
    total = len(ranked)
    return [
        Chosen(key, _place(rank, total, ratio), ratio)
        for rank, (key, ratio) in enumerate(ranked)
        if rank < count or rank >= total - count
    ]


def describe_choice(chosen: Sequence[Chosen], total: int) -> str:
    """A sentence on which clips are shown."""
    if len(chosen) == total:
        return f"All {total} held-out clips."
    return f"The best and the worst of {total} held-out clips."


def _place(index: int, total: int, ratio: float) -> str:
    """The rank of a clip; the best may still be worse than without foveation, the worst better."""
    if index == 0:
        return f"Best of {total}" + (", still worse" if ratio < 1 - ROUNDING else "")
    if index == total - 1:
        return f"Worst of {total}" + (", still better" if ratio > 1 + ROUNDING else "")
    return f"{index + 1} of {total}"
