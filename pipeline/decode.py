"""Decode accepted videos into shards of uint8 frames.

Reads   data/filter/manifest.jsonl, the videos, params.yaml:decode
Writes  data/decode/, metrics/decode.json
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from fvlm.core.errors import FvlmError, VideoError
from fvlm.core.io import hash_json, read_jsonl, write_json
from fvlm.core.params import Params, load_params
from fvlm.core.progress import Progress
from fvlm.core.stage import run
from fvlm.shards.build import ShardContent, ShardPlan, build_shards, plan_splits
from fvlm.shards.plan import Member
from fvlm.shards.reuse import ShardRecord
from fvlm.shards.write import Sample
from fvlm.video.decode import DecodeParams, decode_request
from fvlm.video.reasons import PASSING, count_reasons
from fvlm.video.worker import Outcome, map_isolated, peak_memory_gib
from pipeline.paths import DECODE_METRICS, FRAMES, MANIFEST

CODE = 2  # raise when the same parameters give other frames: stored shards are then made anew

Row = dict[str, Any]


METADATA = ("video_id", "caption", "group", "sha256")  # of the manifest, kept with a sample


class Sections(Params):
    """What this stage reads of params.yaml."""

    decode: DecodeParams


def main() -> None:
    """Decode every accepted video; shards whose clips did not change are reused."""
    params = load_params(Sections).decode
    started = time.monotonic()
    rows = {row["key"]: row for row in read_jsonl(MANIFEST) if row["status"] == "accepted"}
    shape = [params.num_frames, 3, params.frame_size, params.frame_size]
    with Progress("decode", total=len(rows), unit="video") as progress:
        decoder = _Decoder(rows, params, progress)
        manifest = build_shards(
            stage="decode",
            plans=_plan(rows, params),
            produce=decoder.produce,
            out=FRAMES,
            manifest={
                "stage": "decode",
                "params": params.model_dump(),
                "frames": {"dtype": "uint8", "shape": shape},
            },
            on_shard=decoder.count_reused,
        )
    decoded = sum(shard["samples"] for shard in manifest["shards"])
    quarantined = len(manifest["quarantined"])
    assert decoded + quarantined == len(rows), "every accepted video is decoded or quarantined"
    seconds, fresh = time.monotonic() - started, len(rows) - decoder.reused
    metrics = {
        "inputs": len(rows),
        "decoded": decoded,
        "quarantined": quarantined,
        **{f"reason_{name}": n for name, n in count_reasons(manifest["quarantined"]).items()},
        "shards": len(manifest["shards"]),
        "reused": decoder.reused,
        "clips_per_second": round(fresh / seconds, 2) if fresh else None,
        "peak_memory_gib": round(peak_memory_gib(), 2),
    }
    write_json(DECODE_METRICS, metrics)
    if again := sum("retry" in note for note in manifest["quarantined"]):
        print(f"decode: {again} failures may be this machine's, not the videos': {FRAMES}/"
              "manifest.json names them; `dvc repro -f -s decode` tries them again")  # fmt: skip


def _plan(rows: dict[str, Row], params: DecodeParams) -> list[ShardPlan]:
    """Which clips go into which shard, by split; decided by the clips' own hashes."""
    members: dict[str, list[Member]] = {"train": [], "val": []}
    for row in rows.values():
        content = hash_json([row["sha256"], row["video_id"], row["caption"], row["group"]])
        members[row["split"]].append(Member(row["key"], content))
    # What a frame looks like does not depend on how clips are grouped or how many may fail.
    recipe = {"stage": "decode", "code": CODE}
    recipe |= params.model_dump(include={"num_frames", "frame_size"})
    return plan_splits(members, recipe, clips_per_shard=params.clips_per_shard)


class _Decoder:
    """Turns planned shards into samples, and counts what cannot be decoded."""

    def __init__(self, rows: dict[str, Row], params: DecodeParams, progress: Progress) -> None:
        self._rows, self._params, self._progress = rows, params, progress
        self._failed: list[Row] = []
        self.reused = 0

    def count_reused(self, plan: ShardPlan, record: ShardRecord, reused: bool) -> None:
        """Told of every finished shard: one from an earlier run counts with its failures."""
        if reused:
            self.reused += len(plan.members)
            self._progress.skip(len(plan.members), reused=self.reused)
            self._count(0, record.notes)

    def produce(self, plans: Sequence[ShardPlan]) -> Iterator[tuple[ShardPlan, ShardContent]]:
        """Decode ahead across shards, deliver each shard's clips in order."""
        requests = [
            {name: self._rows[member.key][name] for name in ("path", "sha256")}
            | {"num_frames": self._params.num_frames, "size": self._params.frame_size}
            for plan in plans
            for member in plan.members
        ]
        outcomes = map_isolated(decode_request, requests, in_order=True)
        for plan in plans:
            notes: list[Row] = []
            yield plan, ShardContent(self._samples(plan, outcomes, notes), notes)

    def _samples(
        self,
        plan: ShardPlan,
        outcomes: Iterator[tuple[Row, Outcome | VideoError]],
        notes: list[Row],
    ) -> Iterator[Sample]:
        for member in plan.members:
            row, (_, outcome) = self._rows[member.key], next(outcomes)
            if isinstance(outcome, VideoError):
                notes.append(_note(row, outcome))
                self._count(1, notes[-1:])
                continue
            metadata = {name: row[name] for name in METADATA}
            metadata["pts_seconds"] = outcome.values["pts_seconds"]
            yield member.key, {"frames.npy": outcome.arrays["frames"], "json": metadata}
            self._count(1, [])

    def _count(self, videos: int, failed: list[Row]) -> None:
        """Show progress; stop with the list when too many of the videos cannot be decoded."""
        self._failed += failed
        self._progress.advance(videos, **count_reasons(self._failed))
        if len(self._failed) > self._params.max_failed_fraction * len(self._rows):
            lines = (f"\n  {n['video_id']}: {n['reason']}: {n['message']}" for n in self._failed)
            raise FvlmError(
                f"{len(self._failed)} of {len(self._rows)} videos cannot be decoded, more than "
                f"decode.max_failed_fraction ({self._params.max_failed_fraction}) allows:"
                + "".join(lines)
            )


def _note(row: Row, error: VideoError) -> Row:
    """Why the video is left out, in words that do not depend on where it lies."""
    message = str(error).replace(row["path"], "the video")
    note = {"video_id": row["video_id"], "reason": error.reason, "message": message}
    return note | {"retry": True} if error.reason in PASSING else note


if __name__ == "__main__":
    run(main)
