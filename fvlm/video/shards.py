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
from fvlm.video.clips import Clip, ClipSpan, DecodeParams, plan_clips
from fvlm.video.decode import clip_metadata, decode_request
from fvlm.video.plan import can_plan
from fvlm.video.reasons import PASSING
from fvlm.video.sandbox import seconds_to_decode
from fvlm.video.worker import AHEAD, Outcome, Workers

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
    """The clips of the filter's accepted videos, planned when they are asked for.

    A member is a stretch: clips of one video that are decoded in one go. Of each one memory holds
    its key, the hash of all that decides its samples' bytes, and where its video's row stands.
    members: those, by split. videos, clips: how many. with_cuts: candidates that a cut runs through
    and that were left out for that.
    """

    def __init__(self, manifest: Path, params: DecodeParams) -> None:
        self.members: dict[str, list[Member]] = {"train": [], "val": []}
        self.videos = self.clips = self.with_cuts = 0
        self._params, self._paths = params, list(parts_of(manifest))
        self._places = dict[str, tuple[int, int, int]]()  # part, place in it, number of the stretch
        for part, place, row in Rows(manifest, holding='"accepted"').with_places():
            if row["status"] == "accepted":
                self._add(row, part, place)

    def _add(self, row: Row, part: int, place: int) -> None:
        plan = plan_clips(row, self._params)
        self.videos += 1
        self.clips += len(plan.clips)
        self.with_cuts += plan.with_cuts if self._params.cuts == "avoid" else 0
        known = [row["sha256"], row["video_id"], row["group"]]
        for number, stretch in enumerate(plan.stretches()):
            key, spans = stretch[0].key, [clip.span for clip in stretch]
            self.members[row["split"]].append(Member(key, hash_json([known, spans]), len(stretch)))
            self._places[key] = (part, place, number)

    def __getitem__(self, key: str) -> tuple[Row, Sequence[Clip]]:
        """The row of the video, and the clips of the stretch."""
        part, place, number = self._places[key]
        row = read_line(self._paths[part], place)
        return row, plan_clips(row, self._params).stretches()[number]


def plan_frames(
    videos: AcceptedVideos, manifest: FrameManifest, params: DecodeParams
) -> list[ShardPlan]:
    """Which clips go into which shard, by split; decided by the clips' own hashes."""
    recipe = {"made_by": manifest.made_by, "recipe": manifest.recipe}
    return plan_splits(videos.members, recipe, clips_per_shard=params.clips_per_shard)


@dataclass(frozen=True)
class FrameRequest:
    """What a shard of frames is made from: rows of the filter's manifest and clips of each one."""

    stretches: Sequence[tuple[Row, Sequence[Clip]]]
    num_frames: int
    size: int  # pixels


def make_shard(
    request: FrameRequest,
    path: Path,
    *,
    workers: Workers,
    ahead: int | None = None,
    on_clips: Callable[[int, Sequence[Note]], None] = lambda *_: None,
) -> ShardRecord:
    """Decode the clips in `workers`, which run `decode_request`, and write them to a shard.

    ahead: clips that are decoded and not yet written, more or less. on_clips: called with a number
    of clips that are done, and notes on those of them that have no sample. This is all that a
    machine does for a shard.
    """
    notes: list[Note] = []
    most = None
    if ahead:
        largest = max(len(clips) for _, clips in request.stretches)
        most = max(2, ahead // largest)
    items = (decode_item(row, clips, request) for row, clips in request.stretches)

    def samples() -> Iterator[Sample]:
        outcomes = workers.map(items, in_order=True, most=most)
        for (row, clips), (_, outcome) in zip(request.stretches, outcomes, strict=True):
            failed = _notes(row, clips, outcome)
            if not isinstance(outcome, VideoError):
                frames = iter(outcome.arrays["frames"])
                for clip, facts in zip(clips, outcome.values["clips"], strict=True):
                    if "reason" not in facts:
                        metadata = clip_metadata(row, clip.span, facts)
                        yield clip.key, {"frames.npy": next(frames), "json": metadata}
            notes.extend(failed)
            on_clips(len(clips), failed)

    return write_record(path, samples(), notes)


def decode_item(row: Row, clips: Sequence[Clip], request: FrameRequest) -> dict[str, Any]:
    """What `decode_request` is asked for, with the processor time that it may take.

    A clip that ends with its video has no end: a duration is a rounded number.
    """
    seconds, last = row["duration_seconds"], clips[-1].span[1] - clips[0].span[0]
    decoded = last if can_plan(row["codec"], row["container"]) else seconds
    return {
        "path": row["path"],
        "sha256": row["sha256"],
        "num_frames": request.num_frames,
        "size": request.size,
        "clips": [
            [start, end if end < seconds else None] for start, end in (clip.span for clip in clips)
        ],
        "processor_seconds": seconds_to_decode(decoded),
    }


class Decoding:
    """Makes planned shards on this machine, and counts what cannot be decoded.

    Each worker process may have a shard of its own that a thread writes; where there are fewer
    shards, several decode for one.
    """

    def __init__(self, videos: AcceptedVideos, params: DecodeParams, progress: Progress) -> None:
        self._videos, self._params, self._progress = videos, params, progress
        self._failed, self._reasons = list[Note](), Counter[str]()
        self._videos_failed = set[str]()
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
        stretches = [self._videos[member.key] for member in plan.members]
        return make_shard(
            FrameRequest(stretches, self._params.num_frames, self._params.frame_size),
            path,
            workers=self._workers,
            ahead=AHEAD,
            on_clips=self._count,
        )

    def count_known(self, plan: ShardPlan, record: ShardRecord, known: bool) -> None:
        """Told of every finished shard: one from an earlier run counts with its failures."""
        if known:
            clips = sum(member.clips for member in plan.members)
            self.reused += clips
            self._progress.skip(clips, reused=self.reused)
            self._count(0, record.notes)

    def _count(self, clips: int, failed: Sequence[Note]) -> None:
        """Show progress; stop with the list when of too many videos a clip cannot be decoded."""
        with self._counting:
            self._failed += failed
            self._videos_failed.update(note.video_id for note in failed)
            self._reasons += count_reasons(failed)
            self._progress.advance(clips, **_by_name(self._reasons))
            failed_videos, videos = len(self._videos_failed), self._videos.videos
            if failed_videos > self._params.most_failed(videos):
                raise FvlmError(
                    f"{failed_videos} of {videos} videos cannot be decoded, more "
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


def count_reasons(notes: Sequence[Note]) -> Counter[str]:
    """How many clips each reason in the notes concerns."""
    counts = Counter[str]()
    for note in notes:
        counts[note.reason] += note.clips
    return counts


def _by_name(counts: Mapping[str, int]) -> dict[str, int]:
    """The same in the order of names."""
    return dict(sorted(counts.items()))


def _notes(row: Row, clips: Sequence[Clip], outcome: Outcome | VideoError) -> list[Note]:
    """Why clips are left out: a note for all of a video that cannot be used, or one for each."""
    if isinstance(outcome, VideoError):
        return [_note(row, str(outcome.reason), str(outcome), len(clips))]
    return [
        _note(row, facts["reason"], f"{_in_words(clip.span)}: {facts['message']}", 1)
        for clip, facts in zip(clips, outcome.values["clips"], strict=True)
        if "reason" in facts
    ]


def _note(row: Row, reason: str, message: str, clips: int) -> Note:
    """In words that do not depend on where the video lies."""
    said = message.replace(row["path"], "the video")
    return Note(
        video_id=row["video_id"], reason=reason, message=said, retry=reason in PASSING, clips=clips
    )


def _in_words(span: ClipSpan) -> str:
    return f"{span[0]:.2f} to {span[1]:.2f} s"
