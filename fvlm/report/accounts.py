"""What became of every video and every clip, in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Cells = list[str]


@dataclass(frozen=True)
class CutVideo:
    """What was cut out of an accepted video.

    start, end: seconds, of what was asked of it. cuts: changes of shot; None: not looked for. clips
    that are stored; candidates: clips to choose from, with_cuts of which have a change of shot.
    failed: clips that were chosen and could not be decoded.
    """

    video_id: str
    split: str
    start: float
    end: float
    cuts: int | None
    clips: int
    candidates: int
    with_cuts: int
    failed: int


def count_cells(filtering: Mapping[str, Any], decoding: Mapping[str, Any]) -> list[Cells]:
    """Every count of videos and of clips; as metrics/filter.json and metrics/decode.json."""
    counts = {f"videos: {in_plain_words(name)}": str(n) for name, n in filtering.items()}
    names = {"inputs": "to decode", "with_cuts": "left out, with a change of shot"}
    counts |= {
        f"clips: {names.get(name, in_plain_words(name))}": str(number)
        for name, number in decoding.items()
        if name not in ("videos", "shards")
    }
    return [[name, count] for name, count in counts.items()]


def cut_cells(video: CutVideo) -> Cells:
    """A row of the table: what was asked of the video, its clips, and why there are no more."""
    cut, failed = video.with_cuts, video.failed
    other = video.candidates - video.clips - cut - failed
    if video.cuts is None:
        cut, other = 0, other + cut
    counts = {"with a change of shot": cut, "not chosen": other, "failed": failed}
    return [
        video.video_id,
        f"{video.start:.1f} to {video.end:.1f}",
        f"{video.clips} {video.split}",
        ", ".join(f"{count} {why}" for why, count in counts.items() if count) or "none",
    ]


def cut_title(decoding: Mapping[str, Any], listed: int) -> str:
    """How many clips there are of how many videos."""
    clips, videos = decoding["decoded"], decoding["videos"]
    more = f" (the first {listed})" if listed < videos else ""
    return f"{clips} clips of {videos} videos: what was cut from which one{more}"


def in_plain_words(name: str) -> str:
    """The name of a figure as a reader sees it."""
    return name.removeprefix("reason_").replace("_", " ")
