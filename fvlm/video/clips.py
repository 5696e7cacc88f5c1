"""Which clips are cut out of a video: pure arithmetic on seconds from its first frame.

A clip is a span [start, end) of a video with `decode.num_frames` frames. By default it is the whole
video, or what a row of a list asks of it. With `decode.span_seconds` or `decode.frames_per_second`
clips have one length; candidates begin every `decode.clip_stride_seconds`, and a hash chooses
`decode.clips_per_video` of them: another video changes nothing, and more clips keep those that were
there.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, model_validator

from fvlm.core.params import Params
from fvlm.core.seeding import unit_hash

ALWAYS_PASSING = 3  # failures: in a small folder one slow moment is a large fraction
STRETCH = 64  # clips of one video that are decoded in one go, at most
ROUNDING = Fraction(1, 10**6)  # seconds: a duration is a rounded number

Row = Mapping[str, Any]
ClipSpan = tuple[float, float]  # [start, end) in seconds from the video's first frame
Cuts = Literal["keep", "avoid"]


class DecodeParams(Params):
    """Section `decode` of params.yaml."""

    num_frames: int = Field(ge=1)  # frames stored per clip
    frame_size: int = Field(ge=1)  # pixels; height and width of a stored frame
    span_seconds: float = Field(ge=0, default=0.0)
    frames_per_second: float = Field(ge=0, default=0.0)
    clips_per_video: int = Field(ge=0, default=1)
    clip_stride_seconds: float = Field(ge=0, default=0.0)
    cuts: Cuts = "keep"
    clips_per_shard: int = Field(ge=1)  # mean
    max_failed_fraction: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _one_length(self) -> "DecodeParams":
        if self.span_seconds and self.frames_per_second:
            raise ValueError(
                f"span_seconds ({self.span_seconds:g}) and frames_per_second "
                f"({self.frames_per_second:g}) both say how long a clip is: set one of them to 0"
            )
        if not self.clip_seconds and (self.clips_per_video != 1 or self.clip_stride_seconds):
            raise ValueError(
                "clips_per_video must be 1 and clip_stride_seconds 0 where a clip is the whole "
                "video: set span_seconds or frames_per_second to cut several out of it"
            )
        return self

    @cached_property  # asked for twice a clip
    def clip_seconds(self) -> Fraction:
        """How long a clip is; 0: the whole video."""
        if self.frames_per_second:
            return self.num_frames / Fraction(str(self.frames_per_second))
        return Fraction(str(self.span_seconds))

    def most_failed(self, videos: int) -> float:
        """How many of the videos may fail; unless the fraction is 0, a few may, but not all."""
        if self.max_failed_fraction == 0:
            return 0
        return max(self.max_failed_fraction * videos, min(ALWAYS_PASSING, videos - 1))


def asked_span(row: Row, seconds: float) -> ClipSpan:
    """What is asked of a video of so many seconds: all of it, or from `start` to `end` of its row.

    An end behind the video's is the video's. A start behind it gives an empty span.
    """
    start, end = row["start"] or 0.0, row["end"]
    return start, max(start, seconds if end is None else min(end, seconds))


@dataclass(frozen=True)
class Clip:
    """key: of its sample. span: of its video."""

    key: str
    span: ClipSpan


@dataclass(frozen=True)
class ClipPlan:
    """The clips to cut out of a video.

    candidates: how many there were to choose from; with_cuts: those that a cut runs through.
    """

    clips: Sequence[Clip]
    candidates: int
    with_cuts: int

    def stretches(self) -> list[Sequence[Clip]]:
        """The same clips, in groups that are decoded in one go."""
        return [self.clips[n : n + STRETCH] for n in range(0, len(self.clips), STRETCH)]


def plan_clips(row: Row, params: DecodeParams) -> ClipPlan:
    """The clips of a video; row: of the filter's manifest.

    The sample of a whole video has the video's key, one of several that key and a number.
    """
    spans = list(_spans(*asked_span(row, row["duration_seconds"]), params))
    cuts = row["cuts"] or ()
    is_cut = [bool(cuts) and has_cut(span, cuts, params.num_frames) for span in spans]
    chosen = [n for n in range(len(spans)) if params.cuts == "keep" or not is_cut[n]]
    key = row["key"]
    if 0 < params.clips_per_video < len(chosen):
        chosen.sort(key=lambda number: unit_hash(f"{key} {number}", "clip"))
        chosen = sorted(chosen[: params.clips_per_video])
    if params.clip_seconds:
        clips = [Clip(f"{key}-{number:06d}", spans[number]) for number in chosen]
    else:
        clips = [Clip(key, spans[number]) for number in chosen]
    return ClipPlan(clips, candidates=len(spans), with_cuts=sum(is_cut))


def _spans(start: float, end: float, params: DecodeParams) -> Iterator[ClipSpan]:
    """All candidates."""
    length = params.clip_seconds
    if not length:
        yield start, end
        return
    stride = Fraction(str(params.clip_stride_seconds)) or length
    begin, stop = Fraction(start), Fraction(end) + ROUNDING
    while begin + length <= stop:
        yield float(begin), float(begin + length)
        begin += stride


def has_cut(span: ClipSpan, cuts: Sequence[float], num_frames: int) -> bool:
    """Whether one of the cuts, ascending, lies between the clip's first and last frame."""
    start, end = map(Fraction, span)
    margin = (end - start) / (2 * num_frames)  # frames are those at the centres of equal intervals
    return bisect_right(cuts, start + margin) < bisect_right(cuts, end - margin)
