"""Which videos are used, and for what: pure rules on probe facts, no files are opened."""

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Any, Literal

from pydantic import Field, model_validator

from fvlm.core.errors import VideoError
from fvlm.core.params import Params
from fvlm.core.seeding import unit_hash
from fvlm.video.clips import ROUNDING, asked_span
from fvlm.video.facts import Facts

Status = Literal["accepted", "filtered", "quarantined"]
Split = Literal["train", "val"]


class FilterParams(Params):
    """min_seconds, max_seconds: bounds of the duration of what is asked of a video, both included.

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


def classify(
    video: Mapping[str, Any], outcome: Facts | VideoError, params: FilterParams, clip: Fraction
) -> Verdict:
    """Accept a video by the duration of what is asked of it; a failed probe keeps its typed reason.

    video: a row of the listing. clip: seconds that a clip takes; 0: the whole video.
    """
    if isinstance(outcome, VideoError):
        return Verdict("quarantined", str(outcome.reason), str(outcome))
    start, end = asked_span(video, outcome.duration_seconds)
    whole = f"of the file's {outcome.duration_seconds:.3f} s"
    if start and start >= outcome.duration_seconds:
        return Verdict("filtered", "outside_video", f"begins at {start:.15g} s {whole}")
    seconds, shortest = end - start, float(clip - ROUNDING)
    is_part = (video["start"], video["end"]) != (None, None)
    part = f", from {start:.3f} to {end:.3f} s {whole}" if is_part else ""
    if seconds < params.min_seconds:
        message = f"{_apart(seconds, params.min_seconds)} s < {params.min_seconds:.15g} s{part}"
        return Verdict("filtered", "too_short", message)
    if seconds > params.max_seconds:
        message = f"{_apart(seconds, params.max_seconds)} s > {params.max_seconds:.15g} s{part}"
        return Verdict("filtered", "too_long", message)
    if seconds < shortest:
        message = f"{_apart(seconds, float(clip))} s < {float(clip):.6g} s of a clip{part}"
        return Verdict("filtered", "shorter_than_clip", message)
    return ACCEPTED


def _apart(seconds: float, bound: float) -> str:
    """The duration with as many digits, at least 3, as it takes to differ from the bound."""
    digits = next((n for n in range(3, 15) if round(seconds, n) != bound), 15)
    return f"{seconds:.{digits}f}"


class Accepted:
    """Which videos are accepted: of equal content only the one with the first id.

    Memory holds the ids of accepted videos and 16 bytes of their contents' hashes. clip: seconds
    that a clip takes; 0: the whole video.
    """

    def __init__(self, params: FilterParams, clip: Fraction = Fraction(0)) -> None:
        self._params, self._clip = params, clip
        self._first: dict[bytes, str] = {}  # id by content
        self._groups: dict[str, str] = {}  # of videos that are no group of their own
        self._refused: dict[str, Verdict] = {}

    def add(self, video: Mapping[str, Any], outcome: Facts | VideoError) -> None:
        """Take note of a listed video; in any order."""
        if self._classify(video, outcome) != ACCEPTED or not isinstance(outcome, Facts):
            return
        content, video_id, group = _content(video, outcome), video["video_id"], video["group"]
        self._first[content] = min(video_id, self._first.get(content, video_id))
        if group != video_id:
            self._groups[video_id] = sys.intern(group)

    def refuse(self, video_id: str, verdict: Verdict) -> None:
        """An accepted video is none, for what was found out later."""
        self._refused[video_id] = verdict

    def sizes(self) -> Counter[str]:
        """How many accepted videos each group has; all videos have been added."""
        names = (name for name in self._first.values() if name not in self._refused)
        return Counter(self._groups.get(name, name) for name in names)

    def verdict(self, video: Mapping[str, Any], outcome: Facts | VideoError) -> Verdict:
        """What becomes of a video; all have been added."""
        verdict = self._classify(video, outcome)
        if verdict == ACCEPTED and isinstance(outcome, Facts):
            original = self._first[_content(video, outcome)]
            if original != video["video_id"]:
                return Verdict("filtered", "duplicate_content", f"same content as {original}")
        return self._refused.get(video["video_id"], verdict)

    def _classify(self, video: Mapping[str, Any], outcome: Facts | VideoError) -> Verdict:
        return classify(video, outcome, self._params, self._clip)


def _content(video: Mapping[str, Any], facts: Facts) -> bytes:
    part = (video["start"], video["end"])
    asked = "" if part == (None, None) else f" {asked_span(video, facts.duration_seconds)}"
    return hashlib.sha256(f"{facts.sha256}{asked}".encode()).digest()[:16]


def hold_out(
    sizes: Mapping[str, int], val_fraction: float, max_held_out: int = 0
) -> frozenset[str]:
    """Which groups are held out, by their hashes, so that other videos do not move a group.

    sizes: videos of each group. Where more than `max_held_out` videos would be held out, those of
    the highest hashes are not: another video then moves one group at most. When all groups fall on
    one side, the one whose hash is nearest to the border changes sides, as it would with a slightly
    different `val_fraction`. Of fewer than two groups none is.
    """
    if len(sizes) < 2:
        return frozenset()

    def place(group: str) -> tuple[float, str]:
        return unit_hash(group, "split"), group

    below = sorted(place(group) for group in sizes if place(group)[0] < val_fraction)
    chosen = [group for _, group in below]
    if max_held_out:
        videos = accumulate(sizes[group] for group in chosen)
        chosen = chosen[: sum(count <= max_held_out for count in videos)]
    if not chosen:
        chosen = [min(sizes, key=place)]
    return frozenset(chosen[: len(sizes) - 1])


class Counts:
    """The stage's metrics; inputs = accepted + filtered + quarantined."""

    def __init__(self) -> None:
        self._statuses, self._splits, self._reasons = Counter[str](), Counter[str](), Counter[str]()

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row of the manifest."""
        self._statuses[row["status"]] += 1
        if row["split"]:
            self._splits[row["split"]] += 1
        if row["reason"]:
            self._reasons[row["reason"]] += 1

    def figures(self) -> dict[str, int]:
        """By name, reasons in alphabetical order."""
        counts = {
            "inputs": self._statuses.total(),
            "accepted": self._statuses["accepted"],
            "accepted_train": self._splits["train"],
            "accepted_val": self._splits["val"],
            "filtered": self._statuses["filtered"],
            "quarantined": self._statuses["quarantined"],
        }
        reasons = {f"reason_{name}": self._reasons[name] for name in sorted(self._reasons)}
        assert counts["inputs"] == sum(counts[n] for n in ("accepted", "filtered", "quarantined"))
        return counts | reasons
