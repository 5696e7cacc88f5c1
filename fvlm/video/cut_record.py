"""Changes of shot of many videos: found in sandboxed workers, remembered by content."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fvlm.core.errors import VideoError
from fvlm.video.facts import Record, described, failure
from fvlm.video.reasons import PASSING

CUTS = "fvlm.video.cuts:cuts_request"

V = TypeVar("V", bound=Mapping[str, Any])


class CutRecord(Record):
    """Cuts that were found before, by content: a video that is renamed is not decoded again."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, by="sha256")

    def get(self, sha256: str) -> list[float] | VideoError | None:
        """What was found in a file with this content, or None."""
        entry = self.find(sha256)
        with suppress(ValueError, TypeError, KeyError):
            if entry:
                return failure(entry) or [float(cut) for cut in entry["cuts"]]
        return None

    def put(self, sha256: str, outcome: list[float] | VideoError) -> None:
        """Append an outcome unless another run may see another one."""
        if isinstance(outcome, VideoError):
            if outcome.reason not in PASSING:
                self.append({"sha256": sha256} | described(outcome))
        else:
            self.append({"sha256": sha256, "cuts": outcome} | described(outcome))


def all_cuts(
    videos: Iterable[V], record: CutRecord
) -> Iterator[tuple[V | dict[str, Any], list[float] | VideoError]]:
    """Yield (video, cuts) for every video, remembered ones first; each content is decoded once.

    videos: with `path`, `sha256` and `duration_seconds`. Afterwards the record has every outcome
    but those that another run may see otherwise.
    """
    waiting: dict[str, list[V]] = {}
    for video in videos:
        known = record.get(video["sha256"])
        if known is not None:
            yield video, known
        else:
            waiting.setdefault(video["sha256"], []).append(video)
    if not waiting:
        return
    # These bring numpy, which a run without a new video does without.
    from fvlm.video.sandbox import seconds_to_decode
    from fvlm.video.worker import map_isolated

    items = (
        {name: same[0][name] for name in ("path", "sha256")}
        | {"processor_seconds": seconds_to_decode(same[0]["duration_seconds"])}
        for same in waiting.values()
    )
    for item, result in map_isolated(CUTS, items):
        outcome = result if isinstance(result, VideoError) else result.values["cuts"]
        record.put(item["sha256"], outcome)
        for video in waiting[item["sha256"]]:
            yield video, outcome
