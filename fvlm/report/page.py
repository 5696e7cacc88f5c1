"""The report of a run as one self-contained page; the same facts give the same text."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fvlm.core.document import DIGITS
from fvlm.evaluation.figures import (
    controls_height,
    draw_controls,
    draw_curves,
    draw_frames,
    draw_motion,
    svg_chart,
)
from fvlm.model.query_attention import patch_grid
from fvlm.report.accounts import (
    Cells,
    CutVideo,
    count_cells,
    cut_cells,
    cut_title,
    in_plain_words,
)
from fvlm.statistics.arms import MEANINGS
from fvlm.statistics.evaluation import ClipRow, Evaluation, FrameRow, MotionRow
from fvlm.statistics.ratio import Estimate
from fvlm.statistics.tables import arm_rows, charted, figure, ratio_cells, ratio_rows
from fvlm.statistics.verdict import (
    DEMANDS,
    ROUNDING,
    describe,
    describe_gap,
    describe_power,
    describe_skill,
    in_words,
)

SECTIONS = {
    "result": "Result",
    "compared": "What was compared",
    "controls": "Controls",
    "where": "Where it helps",
    "training": "Training",
    "looking": "Where it looks",
    "clips": "Clips",
    "videos": "Videos",
    "made": "How it was made",
}
SAME_QUESTION = 0.95  # similarity of successive queries above which they ask almost the same
LISTED = 200  # videos in a table, at most; all stand in the manifests and in plots/evaluate.csv


@dataclass(frozen=True)
class PicturedClip:
    """A clip with its pictures; bytes are encoded files (WebP, MP4).

    place: why it is shown, for example "best". ratio: coarse / fine loss over frames 3 and later.
    attention, errors: the figures in the pictures as sentences.
    """

    place: str
    video_id: str
    caption: str
    ratio: float
    fixations: bytes
    fixations_alt: str
    attention: str
    predictions: bytes
    predictions_alt: str
    errors: str
    movie: bytes
    movie_alt: str
    poster: bytes


@dataclass(frozen=True)
class Report:
    """All facts of a run: contents of metrics/*.json, rows of plots/*.csv, pictures, origins.

    dataset, date: what the title says: where the videos are from, the day of the code (may be
    empty). figures: the file of all figures. parameters: of the model, by part; flops:
    floating-point operations a clip of `clip_frames` frames; pooled_flops: those of the models with
    pooled tokens, by arm.
    shown: a sentence on which clips are pictured. tokens: N of a frame. cut: of the first videos.
    unused: rows of videos that were not used, with video_id, status, reason and message. params:
    section -> key -> value.
    """

    dataset: str
    date: str
    figures: str
    evaluation: Evaluation
    training: dict[str, Any]
    filtering: dict[str, Any]
    decoding: dict[str, Any]
    curves: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]
    frames: Sequence[FrameRow]
    motion: Sequence[MotionRow]
    by_clip: Sequence[ClipRow]
    clips: Sequence[PicturedClip]
    shown: str
    tokens: int
    parameters: Mapping[str, int]
    flops: int
    clip_frames: int
    cut: Sequence[CutVideo]
    unused: Sequence[dict[str, Any]]
    params: dict[str, dict[str, Any]]
    provenance: dict[str, str]
    versions: dict[str, str]
    pooled_flops: Mapping[str, int] = field(default_factory=dict)


def render_page(report: Report) -> str:
    """The whole page as HTML."""
    environment = Environment(
        loader=PackageLoader("fvlm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    held_out, attention = report.evaluation.held_out, report.evaluation.attention
    ratios = ratio_rows(report.evaluation)
    drawn = charted(ratios)
    charts = {
        "controls": svg_chart(partial(draw_controls, rows=drawn), height=controls_height(drawn)),
        "frames": svg_chart(partial(draw_frames, rows=report.frames)),
        "motion": svg_chart(partial(draw_motion, rows=report.motion)),
        "curves": svg_chart(partial(draw_curves, rows=report.curves, held_out=report.validation)),
    }
    return environment.get_template("page.html").render(
        dataset=report.dataset,
        date=report.date,
        figures=report.figures,
        verdict=report.evaluation.verdict,
        label=in_words(report.evaluation.verdict),
        labels=[[in_words(label).capitalize(), demand] for label, demand in DEMANDS.items()],
        power=describe_power(held_out),
        skill=describe_skill(held_out),
        gap=describe_gap(held_out),
        pooled=_pooled(report),
        statement=describe(held_out),
        sections=SECTIONS.items(),
        facts=_facts(report.evaluation),
        arms=[
            [row.meaning, figure(row.loss, 5), *ratio_cells(row.ratio)]
            for row in arm_rows(report.evaluation)
        ],
        ratios=[[row.meaning, *ratio_cells(row.ratio), str(row.videos)] for row in ratios],
        coarse_only="coarse_only" in held_out.arms,
        uncertainty=_uncertainty(held_out.seeds),
        frame_rows=[
            [str(row.frame), *_both_losses(row), *ratio_cells(row.ratio)] for row in report.frames
        ],
        motion_rows=[
            [
                str(row.quartile),
                str(row.clips),
                str(row.videos),
                figure(row.loss_persistence, 5),
                *ratio_cells(row.ratio),
            ]
            for row in report.motion
        ],
        clip_rows=_clip_rows(report.by_clip),
        clip_title="Ratio by clip, frames 3+ (one alone has no interval)"
        + (f", the best {LISTED} of {len(report.by_clip)}" if len(report.by_clip) > LISTED else ""),
        charts={name: _uri("image/svg+xml", chart.encode()) for name, chart in charts.items()},
        controls_alt="; ".join(
            "{}: {}, interval {}".format(row.meaning, *ratio_cells(row.ratio)) for row in drawn
        ),
        frames_alt=_series_alt("frame", {row.frame: row.ratio for row in report.frames}),
        motion_alt=_series_alt("quartile", {row.quartile: row.ratio for row in report.motion}),
        curves_alt=_curves_alt(report.curves),
        training=[[in_plain_words(name), _text(value)] for name, value in report.training.items()],
        seed_rows=[[str(seed), *ratio_cells(ratio)] for seed, ratio in held_out.by_seed.items()],
        cost=_cost(report),
        patches=patch_grid(report.tokens)[1] ** 2,
        looking=[
            [
                f"{name} pass",
                f"{found.cls_share:.1%}",
                f"{found.entropy:.1%}",
                figure(found.peak, 2),
            ]
            for name, found in attention.passes.items()
        ],
        similarity=figure(attention.query_similarity),
        asking=_asking(attention.query_similarity),
        shown=report.shown,
        clips=[_clip(clip) for clip in report.clips],
        counts=count_cells(report.filtering, report.decoding),
        cut=[cut_cells(video) for video in report.cut],
        cut_title=cut_title(report.decoding, len(report.cut)),
        unused=[
            [str(row[name]) for name in ("video_id", "status", "reason", "message")]
            for row in report.unused[:LISTED]
        ],
        unused_title=f"{len(report.unused)} videos that were not used, with the reason"
        + (f" (the first {LISTED})" if len(report.unused) > LISTED else ""),
        provenance=list(report.provenance.items()),
        versions=list(report.versions.items()),
        params=[
            [f"{section}.{key}", str(value)]
            for section, values in report.params.items()
            for key, value in values.items()
        ],
    )


def _facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    found, left_out = evaluation.held_out, evaluation.footage_left_out
    ratio, interval = ratio_cells(found.coarse_fine_ratio_dynamic)
    return [
        ("coarse / fine loss, frames 3+", ratio),
        ("95% interval", interval),
        ("skill over AR(1), frames 3+", figure(found.skill_over_ar1.value)),
        ("held-out videos", str(found.videos)),
        ("held-out clips", str(found.clips)),
        *([("left out: footage that was trained on", str(left_out))] if left_out else []),
        ("trainings (seeds)", str(found.seeds)),
    ]


def _uncertainty(seeds: int) -> str:
    """Where the intervals come from."""
    if seeds == 1:
        return (
            "Intervals come from resampling videos (or the films they were cut from), not clips. "
            "One training: what another seed would change is not in the interval."
        )
    return (
        f"{seeds} trainings, each with a seed of its own: losses are means over them. Intervals "
        "come from resampling videos (or the films they were cut from), not clips, and from what "
        "differs between the trainings."
    )


def _asking(similarity: float) -> str:
    """What the similarity of successive queries, -1 to 1, says about the language model."""
    if similarity > SAME_QUESTION:
        return "The language model asks almost the same thing in every frame."
    if similarity > SAME_QUESTION / 2:
        return "From frame to frame the language model changes a part of what it asks."
    return "The language model asks for something else from frame to frame."


def _meaning(ratio: float) -> str:
    """A clip's ratio in words."""
    if abs(ratio - 1) <= ROUNDING:
        return "the fine pass makes no difference here"
    return f"the fine pass is {'better' if ratio > 1 else 'worse'} here"


def _clip(clip: PicturedClip) -> dict[str, str]:
    values = {field.name: getattr(clip, field.name) for field in fields(clip)}
    return values | {
        "ratio": figure(clip.ratio),
        "meaning": _meaning(clip.ratio),
        "fixations": _uri("image/webp", clip.fixations),
        "predictions": _uri("image/webp", clip.predictions),
        "movie": _uri("video/mp4", clip.movie),
        "poster": _uri("image/webp", clip.poster),
    }


def _cost(report: Report) -> list[Cells]:
    """What the model weighs, what a clip costs, and where that was computed."""
    return [
        *([f"parameters: {part}", f"{count:,}"] for part, count in report.parameters.items()),
        [
            f"operations a clip of {report.clip_frames} frames, coarse and fine passes",
            f"{_gflop(report.flops)} GFLOP",
        ],
        ["losses computed as", report.evaluation.arithmetic],
    ]


def _pooled(report: Report) -> list[Cells]:
    """What a token by query and several pooled ones see, and what that costs."""
    found = report.evaluation.held_out
    if not report.pooled_flops:
        return []
    rows = [["both passes, the fine one's loss", "1", _gflop(report.flops)]]
    rows[0] += [figure(found.arms["fine"].loss, 5), "-", "-"]
    for arm, flops in report.pooled_flops.items():
        tokens, gap = arm.removeprefix("pooled_"), found.gap_closed[arm]
        loss = figure(found.arms[arm].loss, 5)
        rows.append([MEANINGS[arm], tokens, _gflop(flops), loss, *ratio_cells(gap)])
    return rows


def _gflop(flops: int) -> str:
    return f"{flops / 1e9:.1f}"


def _clip_rows(rows: Sequence[ClipRow]) -> list[Cells]:
    """The best clips first; those without a ratio last."""

    def rank(row: ClipRow) -> float:
        ratio = row.coarse_fine_ratio_dynamic
        return math.inf if ratio is None else -ratio

    return [
        [
            row.video_id if row.start is None else f"{row.video_id}, from {row.start:.1f} s",
            figure(row.losses.get("persistence"), 5),
            *_both_losses(row),
            figure(row.coarse_fine_ratio_dynamic),
        ]
        for row in sorted(rows, key=rank)[:LISTED]
    ]


def _both_losses(row: ClipRow | FrameRow) -> Cells:
    return [figure(row.losses[name], 5) for name in ("coarse", "fine")]


def _series_alt(place: str, ratios: Mapping[int, Estimate]) -> str:
    points = "; ".join(f"{place} {n}: {' ('.join(ratio_cells(r))})" for n, r in ratios.items())
    return f"Coarse loss divided by fine loss. {points}"


def _curves_alt(rows: Sequence[Mapping[str, Any]]) -> str:
    first, last = rows[0], rows[-1]
    ends = [
        f"{name} pass from {figure(float(first[f'loss_{name}']))} "
        f"to {figure(float(last[f'loss_{name}']))}"
        for name in ("coarse", "fine")
    ]
    return f"Loss over {last['samples']} clips seen: {', '.join(ends)}"


def _text(value: Any) -> str:
    return f"{value:#.{DIGITS}g}" if isinstance(value, float) else str(value)


def _uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
