"""Which videos are used, and for what: pure rules on probe facts, no files are opened."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from pydantic import Field, model_validator

from fvlm.core.errors import VideoError
from fvlm.core.params import Params
from fvlm.core.seeding import unit_hash
from fvlm.video.facts import Facts

Status = Literal["accepted", "filtered", "quarantined"]
Split = Literal["train", "val"]


class FilterParams(Params):
    """min_seconds, max_seconds: bounds of the duration, both included.

    val_fraction: expected share of the accepted videos' groups that evaluation holds out.
    max_held_out: videos that are held out at most; 0: no bound.
    """

    min_seconds: float = Field(ge=0)
    max_seconds: float = Field(gt=0)
    val_fraction: float = Field(gt=0, lt=1)
    max_held_out: int = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> "FilterParams":
        if self.min_seconds > self.max_seconds:
            raise ValueError(
                f"min_seconds ({self.min_seconds:g}) must be <= max_seconds ({self.max_seconds:g})"
            )
        return self


@dataclass(frozen=True)
class Verdict:
    """reason and message are empty for an accepted video."""

    status: Status
    reason: str = ""
    message: str = ""


ACCEPTED = Verdict("accepted")


def classify(outcome: Facts | VideoError, params: FilterParams) -> Verdict:
    """Accept a video by its duration; a failed probe keeps its typed reason."""
    if isinstance(outcome, VideoError):
        return Verdict("quarantined", str(outcome.reason), str(outcome))
    seconds = outcome.duration_seconds
    if seconds < params.min_seconds:
        message = f"{_apart(seconds, params.min_seconds)} s < {params.min_seconds:.15g} s"
        return Verdict("filtered", "too_short", message)
    if seconds > params.max_seconds:
        message = f"{_apart(seconds, params.max_seconds)} s > {params.max_seconds:.15g} s"
        return Verdict("filtered", "too_long", message)
    return ACCEPTED


def _apart(seconds: float, bound: float) -> str:
    """The duration with as many digits, at least 3, as it takes to differ from the bound."""
    digits = next((n for n in range(3, 15) if round(seconds, n) != bound), 15)
    return f"{seconds:.{digits}f}"


def classify_all(
    outcomes: Mapping[str, Facts | VideoError], params: FilterParams
) -> dict[str, Verdict]:
    """Verdicts by video_id; of accepted videos with equal content the first id is kept."""
    first: dict[str, str] = {}
    verdicts = {}
    for video_id in sorted(outcomes):
        outcome = outcomes[video_id]
        verdict = classify(outcome, params)
        if verdict == ACCEPTED and isinstance(outcome, Facts):
            original = first.setdefault(outcome.sha256, video_id)
            if original != video_id:
                verdict = Verdict("filtered", "duplicate_content", f"same content as {original}")
        verdicts[video_id] = verdict
    return verdicts


def assign_splits(
    groups: Mapping[str, str], val_fraction: float, max_held_out: int = 0
) -> dict[str, Split]:
    """Split by hash of the group of each video id, so that other videos do not move this one.

    Where more than `max_held_out` videos would be held out, those of the highest hashes are not:
    another video then moves one group at most. When all groups fall on one side, the one whose hash
    is nearest to the border changes sides, as it would with a slightly different `val_fraction`.
    Fewer than two groups have no split.
    """
    hashes = {group: unit_hash(group, "split") for group in groups.values()}
    if len(hashes) < 2:
        return {}
    in_order = sorted(hashes, key=lambda group: (hashes[group], group))
    num_val = sum(value < val_fraction for value in hashes.values())
    if max_held_out:
        sizes = Counter(groups.values())
        videos = accumulate(sizes[group] for group in in_order[:num_val])
        num_val = sum(count <= max_held_out for count in videos)
    num_val = min(max(num_val, 1), len(hashes) - 1)
    held_out = set(in_order[:num_val])
    return {video_id: "val" if group in held_out else "train" for video_id, group in groups.items()}


def count_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The stage's metrics; inputs = accepted + filtered + quarantined."""
    statuses = Counter(row["status"] for row in rows)
    splits = Counter(row["split"] for row in rows)
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    counts = {
        "inputs": len(rows),
        "accepted": statuses["accepted"],
        "accepted_train": splits["train"],
        "accepted_val": splits["val"],
        "filtered": statuses["filtered"],
        "quarantined": statuses["quarantined"],
    }
    assert counts["inputs"] == sum(counts[name] for name in ("accepted", "filtered", "quarantined"))
    return counts | {f"reason_{reason}": reasons[reason] for reason in sorted(reasons)}
