"""Probe every listed video, keep those of a fitting duration, and split them.

Reads   data/collect/ (videos and questions), the videos, params.yaml:filter, params.yaml:decode
        (clips)
Writes  data/filter/manifest.jsonl, data/text/ and data/questions/ (captions and questions of the
        clips to be), metrics/filter.json
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from fvlm.core.document import write_figures
from fvlm.core.errors import FvlmError, VideoError
from fvlm.core.identity import made_by
from fvlm.core.io import sample_key
from fvlm.core.kept import remade
from fvlm.core.params import Params, load_params
from fvlm.core.progress import Progress
from fvlm.core.rows import Rows, write_rows
from fvlm.core.stage import run
from fvlm.video.accept import ACCEPTED, Accepted, Counts, FilterParams, Verdict, hold_out
from fvlm.video.clips import ClipSpan, DecodeParams, plan_clips
from fvlm.video.cut_record import CUTS, CutRecord, all_cuts
from fvlm.video.facts import FACTS, FactRecord, Facts, probe_all, probe_folder, probe_version
from fvlm.video.reasons import PASSING
from pipeline.paths import ASKED, CAPTIONS, FILTER_METRICS, MANIFEST, QUESTIONS, VIDEOS

Video = Mapping[str, Any]  # a row of the listing


class Sections(Params):
    """What this stage reads of params.yaml."""

    decode: DecodeParams
    filter: FilterParams


def main() -> None:
    """Write a row for every video; stop when there is nothing to train or evaluate on."""
    sections = load_params(Sections)
    params = sections.filter
    outcomes, accepted = Outcomes(), Accepted(params, sections.decode.clip_seconds)
    for video, outcome in outcomes.probe():
        accepted.add(video, outcome)
    if sections.decode.cuts == "avoid":
        refuse_for_cuts(outcomes, accepted, sections.decode)
    held_out = hold_out(accepted.sizes(), params.val_fraction, params.max_held_out)
    counts = Counts()
    write_rows(MANIFEST, _rows(outcomes, accepted, held_out, counts))
    write_rows(CAPTIONS, _captions(sections.decode))
    asked = Counter[str]()
    write_rows(QUESTIONS, _questions(sections.decode, asked))
    figures = counts.figures() | account_for_questions(asked)
    write_figures(FILTER_METRICS, figures)
    remade("filter")
    summary = ", ".join(f"{count} {name}" for name, count in figures.items())
    print(f"filter: {summary}")
    if not held_out:
        raise FvlmError(
            f"{figures['accepted']} of {figures['inputs']} videos accepted, but training and "
            f"evaluation need one each, of different groups ({summary}); {MANIFEST} has the reason "
            "of every video. Set collect.source to more videos, or widen filter.min_seconds and "
            "filter.max_seconds in params.yaml"
        )


class Outcomes:
    """What probing gives of every video; untouched files are not opened again.

    Memory holds no facts, only failures that the record of facts does not keep.
    """

    def __init__(self) -> None:
        self._record = FactRecord(probe_folder() / f"{probe_version()}.jsonl")
        self._passing: dict[str, VideoError] = {}
        self._cuts: CutRecord | None = None

    def probe(self) -> Iterator[tuple[Video, Facts | VideoError]]:
        """Every listed video with its outcome, in any order."""
        videos, failed = Rows(VIDEOS), Counter[str]()
        with Progress("filter", total=videos.count(), unit="video") as progress:
            for video, outcome in probe_all(videos, self._record):
                if isinstance(outcome, VideoError):
                    failed[str(outcome.reason)] += 1
                    if outcome.reason in PASSING:
                        self._passing[video["path"]] = outcome
                progress.advance(**failed)
                yield video, outcome

    def cuts(self, outcome: Facts | VideoError) -> list[float] | None:
        """Changes of shot in the video; None where they were not looked for, or not found."""
        if self._cuts is None or isinstance(outcome, VideoError):
            return None
        found = self._cuts.get(outcome.sha256)
        return found if isinstance(found, list) else None

    def look_for_cuts(self, accepted: Accepted) -> Iterator[tuple[Video, list[float] | VideoError]]:
        """Every accepted video with its changes of shot, in any order; the first time decoded."""
        self._cuts = CutRecord(probe_folder() / f"cuts-{made_by(CUTS)}.jsonl")
        rows = (
            {name: video[name] for name in ("video_id", "path", "start", "end")}
            | {"sha256": outcome.sha256, "duration_seconds": outcome.duration_seconds}
            for video in Rows(VIDEOS)
            if isinstance(outcome := self.of(video), Facts)
            and accepted.verdict(video, outcome) == ACCEPTED
        )
        with Progress("filter", total=accepted.sizes().total(), unit="video") as progress:
            for video, cuts in all_cuts(rows, self._cuts):
                progress.advance()
                yield video, cuts

    def of(self, video: Video) -> Facts | VideoError:
        """The outcome of a video that was probed."""
        outcome = self._passing.get(video["path"]) or self._record.get(video["path"])
        assert outcome is not None, "what is not in the record is passing"
        return outcome


def refuse_for_cuts(outcomes: Outcomes, accepted: Accepted, params: DecodeParams) -> None:
    """Refuse the videos that cannot be searched, and those without a clip free of cuts."""
    for video, cuts in outcomes.look_for_cuts(accepted):
        if isinstance(cuts, VideoError):
            verdict = Verdict("quarantined", str(cuts.reason), str(cuts))
            accepted.refuse(video["video_id"], verdict)
            continue
        plan = plan_clips(dict(video) | {"key": "", "cuts": cuts}, params)
        if not plan.clips:
            message = f"a change of shot in each of {plan.candidates} clips"
            accepted.refuse(video["video_id"], Verdict("filtered", "cuts_everywhere", message))


def _rows(
    outcomes: Outcomes, accepted: Accepted, held_out: frozenset[str], counts: Counts
) -> Iterator[dict[str, Any]]:
    """The lines of the manifest, counted."""
    for video in Rows(VIDEOS):
        outcome = outcomes.of(video)
        verdict = accepted.verdict(video, outcome)
        # Of the accepted only: of others the record may or may not know cuts from earlier runs.
        cuts = outcomes.cuts(outcome) if verdict == ACCEPTED else None
        row = _row(video, outcome, verdict, held_out) | {"cuts": cuts}
        counts.add(row)
        yield row


def _captions(params: DecodeParams) -> Iterator[dict[str, Any]]:
    """The lines of the table of captions: those of a video belong to each of its clips."""
    for video, row in zip(Rows(VIDEOS), Rows(MANIFEST), strict=True):
        if video["caption"] and row["status"] == "accepted":
            for clip in plan_clips(row, params).clips:
                told = {name: video[name] for name in ("video_id", "caption")}
                yield {"key": clip.key} | told


def _questions(params: DecodeParams, asked: Counter[str]) -> Iterator[dict[str, Any]]:
    """The lines of the table of questions: each one for every clip that it is asked of; counted.

    With times it is asked of clips that contain these, else of all clips of its video.
    """
    remaining = groupby(Rows(ASKED), key=lambda question: question["video_id"])
    video_id, questions = next(remaining, (None, ()))
    for row in Rows(MANIFEST):
        if row["video_id"] != video_id:
            continue
        accepted = row["status"] == "accepted"
        clips = plan_clips(row, params).clips if accepted else ()
        for question in questions:
            keys = [clip.key for clip in clips if _contains(clip.span, question)]
            asked["used" if keys else "outside_clips" if accepted else "without_clips"] += 1
            yield from ({"key": key, "group": row["group"]} | question for key in keys)
        video_id, questions = next(remaining, (None, ()))
    while video_id is not None:  # listed last
        asked["without_video"] += len(list(questions))
        video_id, questions = next(remaining, (None, ()))


def _contains(span: ClipSpan, question: Mapping[str, Any]) -> bool:
    times = [seconds for seconds in (question["start"], question["end"]) if seconds is not None]
    return all(span[0] <= seconds <= span[1] for seconds in times)


def account_for_questions(asked: Counter[str]) -> dict[str, int]:
    """Every question: asked of clips, in none of them, of a video that is not used, of no video."""
    if not asked:
        return {}
    names = ("used", "outside_clips", "without_clips", "without_video")
    return {"questions": asked.total()} | {f"questions_{name}": asked[name] for name in names}


def _row(
    video: Video, outcome: Facts | VideoError, verdict: Verdict, held_out: frozenset[str]
) -> dict[str, Any]:
    """One line of the manifest; without times, so that touching a file changes nothing."""
    facts = {name: getattr(outcome, name, None) for name in FACTS}
    split = None
    if verdict.status != "accepted":
        facts["sha256"] = None
    elif held_out:
        split = "val" if video["group"] in held_out else "train"
    return {
        "video_id": video["video_id"],
        "key": sample_key(video["video_id"]),
        **{name: video[name] for name in ("path", "size", "group", "start", "end")},
        **vars(verdict),
        **facts,
        "split": split,
    }


if __name__ == "__main__":
    run(main)
