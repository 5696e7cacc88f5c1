"""Decode accepted videos into shards of uint8 frames.

Reads   data/filter/manifest.jsonl, the videos, params.yaml:decode
Writes  data/decode/, metrics/decode.json
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fvlm.errors import FvlmError, VideoError
from fvlm.io import hash_json, read_jsonl, write_json
from fvlm.params import Params, load_params
from fvlm.progress import Progress
from fvlm.shards.build import ShardContent, ShardPlan, build_shards
from fvlm.shards.plan import Member, plan_shards
from fvlm.shards.reuse import ShardRecord
from fvlm.shards.write import Sample
from fvlm.video.decode import DecodeParams, decode_request
from fvlm.video.worker import Outcome, map_isolated
from pipeline.stage import run

VIDEOS, SHARDS, METRICS = (
    Path("data/filter/manifest.jsonl"),
    Path("data/decode"),
    Path("metrics/decode.json"),
)
CODE = 1  # raise when the same parameters give other frames: stored shards are then made anew

Row = dict[str, Any]


class Sections(Params):
    """What this stage reads of params.yaml."""

    decode: DecodeParams


def main() -> None:
    """Decode every accepted video; shards whose clips did not change are reused."""
    params = load_params(Sections).decode
    started = time.monotonic()
    rows = {row["key"]: row for row in read_jsonl(VIDEOS) if row["status"] == "accepted"}
    # What a frame looks like does not depend on how clips are grouped or how many may fail.
    recipe = {"stage": "decode", "code": CODE} | params.model_dump(include={"num_frames", "size"})
    stage = _Decoder(rows, params)
    with Progress("decode", total=len(rows), unit="video") as progress:

        def on_shard(plan: ShardPlan, record: ShardRecord, reused: bool) -> None:
            if reused:
                stage.reused += len(plan.members)
                stage.count_failed(record.notes)
            progress.advance(len(plan.members), reused=stage.reused, **stage.reasons)

        manifest = build_shards(
            stage="decode",
            plans=plan_stage(rows, recipe, params.clips_per_shard),
            produce=stage.produce,
            out=SHARDS,
            manifest={
                "stage": "decode",
                "params": params.model_dump(),
                "frames": {
                    "dtype": "uint8",
                    "shape": [params.num_frames, 3, params.size, params.size],
                },
            },
            on_shard=on_shard,
        )
    failed = manifest["quarantined"]
    decoded = sum(shard["samples"] for shard in manifest["shards"])
    assert decoded + len(failed) == len(rows), "every accepted video is decoded or quarantined"
    computed = len(rows) - stage.reused
    write_json(
        METRICS,
        {
            "inputs": len(rows),
            "decoded": decoded,
            "quarantined": len(failed),
            **{f"reason_{name}": n for name, n in _count_reasons(failed).items()},
            "shards": len(manifest["shards"]),
            "reused": stage.reused,
            "clips_per_second": round(computed / (time.monotonic() - started), 2),
        },
    )


def plan_stage(rows: dict[str, Row], recipe: Row, clips_per_shard: int) -> list[ShardPlan]:
    """Which clips go into which shard, by split; decided by the clips' own hashes."""
    return [
        ShardPlan.of(split, members, recipe)
        for split in ("train", "val")
        for members in plan_shards(
            [_member(row) for row in rows.values() if row["split"] == split], clips_per_shard
        )
    ]


def _member(row: Row) -> Member:
    return Member(row["key"], hash_json([row["sha256"], row["video_id"], row["caption"]]))


class _Decoder:
    """Turns planned shards into samples, and counts what cannot be decoded."""

    def __init__(self, rows: dict[str, Row], params: DecodeParams) -> None:
        self._rows, self._params = rows, params
        self._failed: list[Row] = []
        self.reused = 0

    @property
    def reasons(self) -> dict[str, int]:
        return _count_reasons(self._failed)

    def produce(self, plans: Sequence[ShardPlan]) -> Iterator[tuple[ShardPlan, ShardContent]]:
        """Decode ahead across shards, deliver each shard's clips in order."""
        keys = [member.key for plan in plans for member in plan.members]
        requests = [
            {"key": key, "path": self._rows[key]["path"], "sha256": self._rows[key]["sha256"]}
            | self._params.model_dump(include={"num_frames", "size"})
            for key in keys
        ]
        outcomes = _in_order(keys, map_isolated(decode_request, requests))
        for plan in plans:
            notes: list[Row] = []
            yield plan, ShardContent(self._samples(plan, outcomes, notes), notes)

    def _samples(
        self, plan: ShardPlan, outcomes: Iterator[Outcome | VideoError], notes: list[Row]
    ) -> Iterator[Sample]:
        for member in plan.members:
            row, outcome = self._rows[member.key], next(outcomes)
            if isinstance(outcome, VideoError):
                note = {"video_id": row["video_id"], "reason": outcome.reason}
                notes.append(note | {"message": str(outcome).replace(row["path"], "the video")})
                self.count_failed(notes[-1:])
                continue
            metadata = {name: row[name] for name in ("video_id", "caption", "sha256")}
            metadata["pts_seconds"] = outcome.values["pts_seconds"]
            yield member.key, {"frames.npy": outcome.arrays["frames"], "json": metadata}

    def count_failed(self, notes: list[Row]) -> None:
        """Stop with the list when too many of the videos cannot be decoded."""
        self._failed += notes
        failed = self._failed
        if len(failed) > self._params.max_failed_fraction * len(self._rows):
            lines = "".join(f"\n  {n['video_id']}: {n['reason']}: {n['message']}" for n in failed)
            raise FvlmError(
                f"{len(failed)} of {len(self._rows)} videos cannot be decoded, more than "
                f"decode.max_failed_fraction ({self._params.max_failed_fraction}) allows:{lines}"
            )


def _in_order(
    keys: Sequence[str], outcomes: Iterable[tuple[Row, Outcome | VideoError]]
) -> Iterator[Outcome | VideoError]:
    """Outcomes in the order of `keys`; those that finish early wait."""
    waiting: dict[str, Outcome | VideoError] = {}
    arriving = iter(outcomes)
    for key in keys:
        while key not in waiting:
            request, outcome = next(arriving)
            waiting[request["key"]] = outcome
        yield waiting.pop(key)


def _count_reasons(notes: Iterable[Row]) -> dict[str, int]:
    return dict(sorted(Counter(str(note["reason"]) for note in notes).items()))


if __name__ == "__main__":
    run(main)
