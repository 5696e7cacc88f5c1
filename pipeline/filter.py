"""Probe every listed video, keep those of a fitting duration, and split them.

Reads   data/collect/videos.jsonl, the videos, params.yaml:filter
Writes  data/filter/manifest.jsonl, metrics/filter.json
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fvlm.core.document import write_figures
from fvlm.core.errors import FvlmError, VideoError
from fvlm.core.io import read_jsonl, sample_key, write_jsonl
from fvlm.core.kept import remade
from fvlm.core.params import Params, load_params
from fvlm.core.progress import Progress
from fvlm.core.stage import run
from fvlm.video.accept import FilterParams, Split, Verdict, assign_splits, classify_all, count_rows
from fvlm.video.facts import FACTS, FactRecord, Facts, probe_all, probe_folder, probe_version
from pipeline.paths import FILTER_METRICS, MANIFEST, VIDEOS


class Sections(Params):
    """What this stage reads of params.yaml."""

    filter: FilterParams


def main() -> None:
    """Write a row for every video; stop when there is nothing to train or evaluate on."""
    params = load_params(Sections).filter
    videos = read_jsonl(VIDEOS)
    outcomes = _probe(videos)
    verdicts = classify_all(outcomes, params)
    groups = {video["video_id"]: video["group"] for video in videos}
    accepted = {name: groups[name] for name, verdict in verdicts.items() if not verdict.reason}
    splits = assign_splits(accepted, params.val_fraction, params.max_held_out)
    rows = [_row(video, outcomes, verdicts, splits) for video in videos]
    counts = count_rows(rows)
    write_jsonl(MANIFEST, rows)
    write_figures(FILTER_METRICS, counts)
    remade("filter")
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"filter: {summary}")
    if not splits:
        raise FvlmError(
            f"{len(accepted)} of {len(rows)} videos accepted, but training and evaluation need one "
            f"each, of different groups ({summary}); {MANIFEST} has the reason of every video. Set "
            "collect.source to more videos, or widen filter.min_seconds and filter.max_seconds in "
            "params.yaml"
        )


def _probe(videos: Sequence[Mapping[str, Any]]) -> dict[str, Facts | VideoError]:
    """Outcomes by video_id; untouched files are not opened again."""
    video_ids = {video["path"]: video["video_id"] for video in videos}
    record = FactRecord(probe_folder() / f"{probe_version()}.jsonl")
    outcomes: dict[str, Facts | VideoError] = {}
    failed: Counter[str] = Counter()
    with Progress("filter", total=len(videos), unit="video") as progress:
        for path, outcome in probe_all(video_ids, record):
            outcomes[video_ids[path]] = outcome
            if isinstance(outcome, VideoError):
                failed[str(outcome.reason)] += 1
            progress.advance(**failed)
    return outcomes


def _row(
    video: Mapping[str, Any],
    outcomes: Mapping[str, Facts | VideoError],
    verdicts: Mapping[str, Verdict],
    splits: Mapping[str, Split],
) -> dict[str, Any]:
    """One line of the manifest; without times, so that touching a file changes nothing."""
    video_id = video["video_id"]
    outcome, verdict = outcomes[video_id], verdicts[video_id]
    facts = {name: getattr(outcome, name, None) for name in FACTS}
    if verdict.status != "accepted":
        facts["sha256"] = None
    return {
        "video_id": video_id,
        "key": sample_key(video_id),
        **{name: video[name] for name in ("path", "size", "caption", "group")},
        **asdict(verdict),
        **facts,
        "split": splits.get(video_id),
    }


if __name__ == "__main__":
    run(main)
