"""Accepted videos as shards of frames."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fvlm.core.errors import FvlmError, VideoError
from fvlm.core.identity import made_by
from fvlm.core.io import hash_json, state_folder, write_jsonl
from fvlm.core.progress import Progress
from fvlm.shards.build import ShardContent, ShardPlan, plan_splits
from fvlm.shards.manifest import Array, FrameManifest, Note
from fvlm.shards.plan import Member
from fvlm.shards.reuse import ShardRecord
from fvlm.shards.write import Sample, write_shard
from fvlm.video.decode import DecodeParams, clip_metadata, decode_request
from fvlm.video.reasons import PASSING
from fvlm.video.worker import Outcome, map_isolated

Row = Mapping[str, Any]

LISTED = 20  # failures in a message


def describe_frames(params: DecodeParams) -> FrameManifest:
    """The manifest to be, without its shards.

    What a frame looks like does not depend on how clips are grouped or how many may fail.
    """
    size = params.frame_size
    return FrameManifest(
        stage="decode",
        made_by=made_by(decode_request, write_shard),
        recipe=params.model_dump(include={"num_frames", "frame_size"}),
        frames=Array(dtype="uint8", shape=[params.num_frames, 3, size, size]),
    )


def plan_frames(
    rows: Mapping[str, Row], manifest: FrameManifest, params: DecodeParams
) -> list[ShardPlan]:
    """Which clips go into which shard, by split; decided by the clips' own hashes.

    rows: the filter's accepted videos, by key.
    """
    members: dict[str, list[Member]] = {"train": [], "val": []}
    for row in rows.values():
        content = hash_json([row["sha256"], row["video_id"], row["caption"], row["group"]])
        members[row["split"]].append(Member(row["key"], content))
    recipe = {"made_by": manifest.made_by, "recipe": manifest.recipe}
    return plan_splits(members, recipe, clips_per_shard=params.clips_per_shard)


class Decoding:
    """Turns planned shards into samples, and counts what cannot be decoded."""

    def __init__(self, rows: Mapping[str, Row], params: DecodeParams, progress: Progress) -> None:
        self._rows, self._params, self._progress = rows, params, progress
        self._failed, self._reasons = list[Note](), Counter[str]()
        self.reused = 0

    def count_known(self, plan: ShardPlan, record: ShardRecord, known: bool) -> None:
        """Told of every finished shard: one from an earlier run counts with its failures."""
        if known:
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
            notes: list[Note] = []
            yield plan, ShardContent(self._samples(plan, outcomes, notes), notes)

    def _samples(
        self,
        plan: ShardPlan,
        outcomes: Iterator[tuple[dict[str, Any], Outcome | VideoError]],
        notes: list[Note],
    ) -> Iterator[Sample]:
        for member in plan.members:
            row, (_, outcome) = self._rows[member.key], next(outcomes)
            if isinstance(outcome, VideoError):
                notes.append(_note(row, outcome))
                self._count(1, notes[-1:])
                continue
            metadata = clip_metadata(row, outcome.values)
            yield member.key, {"frames.npy": outcome.arrays["frames"], "json": metadata}
            self._count(1, [])

    def _count(self, videos: int, failed: Sequence[Note]) -> None:
        """Show progress; stop with the list when too many of the videos cannot be decoded."""
        self._failed += failed
        self._reasons.update(note.reason for note in failed)
        self._progress.advance(videos, **_by_name(self._reasons))
        if len(self._failed) > self._params.most_failed(len(self._rows)):
            raise FvlmError(
                f"{len(self._failed)} of {len(self._rows)} videos cannot be decoded, more than "
                f"decode.max_failed_fraction ({self._params.max_failed_fraction}) allows:"
                + "".join(f"\n  {line}" for line in _list(self._failed))
            )


def _list(notes: Sequence[Note]) -> list[str]:
    """A line each; of many the first, and the name of a file with all."""
    lines = [f"{note.video_id}: {note.reason}: {note.message}" for note in notes[:LISTED]]
    if len(notes) > LISTED:
        path = state_folder() / "decode_failed.jsonl"
        write_jsonl(path, (note.model_dump() for note in notes))
        lines.append(f"... all {len(notes)}: {path}")
    return lines


def count_reasons(notes: Sequence[Note]) -> dict[str, int]:
    """How often each reason stands in the notes, by name."""
    return _by_name(Counter(note.reason for note in notes))


def _by_name(counts: Mapping[str, int]) -> dict[str, int]:
    """The same in the order of names."""
    return dict(sorted(counts.items()))


def _note(row: Row, error: VideoError) -> Note:
    """Why the video is left out, in words that do not depend on where it lies."""
    message = str(error).replace(row["path"], "the video")
    retry = error.reason in PASSING
    return Note(video_id=row["video_id"], reason=str(error.reason), message=message, retry=retry)
