"""Accepted videos as shards of frames."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvlm.core.errors import FvlmError, VideoError
from fvlm.core.identity import made_by
from fvlm.core.io import hash_json, read_line, state_folder, write_jsonl
from fvlm.core.progress import Progress
from fvlm.core.rows import Rows, parts_of
from fvlm.shards.build import ShardPlan, plan_splits, write_record
from fvlm.shards.manifest import Array, FrameManifest, Note
from fvlm.shards.plan import Member
from fvlm.shards.reuse import ShardRecord
from fvlm.shards.write import Sample, write_shard
from fvlm.video.decode import DecodeParams, clip_metadata, decode_request
from fvlm.video.reasons import PASSING
from fvlm.video.worker import AHEAD, Workers

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


class AcceptedVideos:
    """The accepted videos of the filter's manifest, read when they are asked for.

    Of each one memory holds its key, the hash of all that decides its sample's bytes, and where its
    row stands. members: those, by split.
    """

    def __init__(self, manifest: Path) -> None:
        self.members: dict[str, list[Member]] = {"train": [], "val": []}
        self._paths, self._places = list(parts_of(manifest)), dict[str, tuple[int, int]]()
        for part, place, row in Rows(manifest, holding='"accepted"').with_places():
            if row["status"] == "accepted":
                content = hash_json([row["sha256"], row["video_id"], row["caption"], row["group"]])
                self.members[row["split"]].append(Member(row["key"], content))
                self._places[row["key"]] = (part, place)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: str) -> Row:
        part, place = self._places[key]
        return read_line(self._paths[part], place)


def plan_frames(
    videos: AcceptedVideos, manifest: FrameManifest, params: DecodeParams
) -> list[ShardPlan]:
    """Which clips go into which shard, by split; decided by the clips' own hashes."""
    recipe = {"made_by": manifest.made_by, "recipe": manifest.recipe}
    return plan_splits(videos.members, recipe, clips_per_shard=params.clips_per_shard)


@dataclass(frozen=True)
class FrameRequest:
    """What a shard of frames is made from: rows of the filter's manifest, and parameters."""

    videos: Sequence[Row]
    num_frames: int
    size: int  # pixels


def make_shard(
    request: FrameRequest,
    path: Path,
    *,
    workers: Workers,
    ahead: int | None = None,
    on_video: Callable[[Note | None], None] = lambda _: None,
) -> ShardRecord:
    """Decode the videos in `workers`, which run `decode_request`, and write them to a shard.

    ahead: videos that are decoded and not yet written, at most. on_video: called after each one,
    with the reason where it has no sample. This is all that a machine does for a shard.
    """
    notes: list[Note] = []
    sizes = {"num_frames": request.num_frames, "size": request.size}
    items = ({"path": row["path"], "sha256": row["sha256"]} | sizes for row in request.videos)

    def samples() -> Iterator[Sample]:
        outcomes = workers.map(items, in_order=True, most=ahead)
        for row, (_, outcome) in zip(request.videos, outcomes, strict=True):
            if isinstance(outcome, VideoError):
                notes.append(_note(row, outcome))
                on_video(notes[-1])
                continue
            metadata = clip_metadata(row, outcome.values)
            yield row["key"], {"frames.npy": outcome.arrays["frames"], "json": metadata}
            on_video(None)

    return write_record(path, samples(), notes)


class Decoding:
    """Makes planned shards on this machine, and counts what cannot be decoded.

    Each worker process may have a shard of its own that a thread writes; where there are fewer
    shards, several decode for one.
    """

    def __init__(self, videos: AcceptedVideos, params: DecodeParams, progress: Progress) -> None:
        self._videos, self._params, self._progress = videos, params, progress
        self._failed, self._reasons = list[Note](), Counter[str]()
        self._counting = threading.Lock()
        self._workers = Workers(decode_request)
        self.reused = 0

    def __enter__(self) -> "Decoding":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the worker processes."""
        self._workers.close()

    @property
    def side_by_side(self) -> int:
        """Shards that are made at a time."""
        return self._workers.count

    def make(self, plan: ShardPlan, path: Path) -> ShardRecord:
        """As `build_shards` wants it."""
        rows = [self._videos[member.key] for member in plan.members]
        return make_shard(
            FrameRequest(rows, self._params.num_frames, self._params.frame_size),
            path,
            workers=self._workers,
            ahead=AHEAD,
            on_video=lambda note: self._count(1, [note] if note else []),
        )

    def count_known(self, plan: ShardPlan, record: ShardRecord, known: bool) -> None:
        """Told of every finished shard: one from an earlier run counts with its failures."""
        if known:
            self.reused += len(plan.members)
            self._progress.skip(len(plan.members), reused=self.reused)
            self._count(0, record.notes)

    def _count(self, videos: int, failed: Sequence[Note]) -> None:
        """Show progress; stop with the list when too many of the videos cannot be decoded."""
        with self._counting:
            self._failed += failed
            self._reasons.update(note.reason for note in failed)
            self._progress.advance(videos, **_by_name(self._reasons))
            if len(self._failed) > self._params.most_failed(len(self._videos)):
                raise FvlmError(
                    f"{len(self._failed)} of {len(self._videos)} videos cannot be decoded, more "
                    f"than decode.max_failed_fraction ({self._params.max_failed_fraction}) allows:"
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
