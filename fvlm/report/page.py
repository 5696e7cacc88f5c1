"""The report of a run as one self-contained page; the same facts give the same text."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fvlm.report.charts import Table, controls_chart, curves_chart, frames_chart, motion_chart
from fvlm.statistics.ratio import estimate_in
from fvlm.statistics.tables import RatioRow, arm_rows, figure, interval, ratio_rows
from fvlm.statistics.verdict import ROUNDING, describe

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

Cells = list[str]


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

    shown: a sentence on which clips are pictured. tokens: N of a frame. unused: rows of videos
    that were not used, with video_id, status, reason and message. params: section -> key -> value.
    """

    evaluation: dict[str, Any]
    training: dict[str, Any]
    filtering: dict[str, Any]
    decoding: dict[str, Any]
    curves: Table
    frames: Table
    motion: Table
    by_clip: Table
    clips: Sequence[PicturedClip]
    shown: str
    tokens: int
    unused: Sequence[dict[str, Any]]
    params: dict[str, dict[str, Any]]
    provenance: dict[str, str]
    versions: dict[str, str]


def render_page(report: Report) -> str:
    """The whole page as HTML."""
    environment = Environment(
        loader=PackageLoader("fvlm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    found = report.evaluation
    ratios = ratio_rows(found)
    # So far from 1 that the others could not be told apart beside it.
    drawn = [row for row in ratios if not row.name.startswith("persistence")]
    return environment.get_template("page.html").render(
        evaluation=found,
        statement=describe(found),
        sections=SECTIONS.items(),
        facts=_facts(found),
        arms=[
            [row.meaning, figure(row.loss, 5), figure(row.value), interval(row)]
            for row in arm_rows(found)
        ],
        ratios=[
            [row.meaning, figure(row.value), interval(row), str(row.videos)]
            for row in (*ratios, *_caption_ratio(found))
        ],
        coarse_only="loss_coarse_only" in found,
        uncertainty=_uncertainty(found["seeds"]),
        frame_rows=[
            [
                row["frame"],
                _digits(row["loss_coarse"], 5),
                _digits(row["loss_fine"], 5),
                *_ratio_cells(row, "coarse_fine_ratio"),
            ]
            for row in report.frames
        ],
        motion_rows=[
            [
                row["quartile"],
                row["clips"],
                row["videos"],
                _digits(row["loss_persistence"], 5),
                *_ratio_cells(row, "coarse_fine_ratio_dynamic"),
            ]
            for row in report.motion
        ],
        clip_rows=_clip_rows(report.by_clip),
        clip_title="Ratio by clip, frames 3+ (one video gives no interval)"
        + (f", the best {LISTED} of {len(report.by_clip)}" if len(report.by_clip) > LISTED else ""),
        charts={
            "controls": _uri("image/svg+xml", controls_chart(drawn).encode()),
            "frames": _uri("image/svg+xml", frames_chart(report.frames).encode()),
            "motion": _uri("image/svg+xml", motion_chart(report.motion).encode()),
            "curves": _uri("image/svg+xml", curves_chart(report.curves).encode()),
        },
        controls_alt="; ".join(
            f"{row.meaning}: {figure(row.value)}, interval {interval(row)}" for row in drawn
        ),
        frames_alt=_series_alt("frame", report.frames, "coarse_fine_ratio"),
        motion_alt=_series_alt("quartile", report.motion, "coarse_fine_ratio_dynamic"),
        curves_alt=_curves_alt(report.curves),
        training=[[_words(name), _text(value)] for name, value in report.training.items()],
        tokens=report.tokens,
        looking=[
            [
                f"{name} pass",
                f"{found[f'attention_entropy_{name}']:.1%}",
                figure(found[f"attention_peak_{name}"], 2),
            ]
            for name in ("coarse", "fine")
        ],
        similarity=figure(found["query_similarity"]),
        asking=_asking(found["query_similarity"]),
        shown=report.shown,
        clips=[_clip(clip) for clip in report.clips],
        counts=_counts(report),
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


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    (dynamic,) = (row for row in ratio_rows(found) if row.name == "coarse_fine_ratio_dynamic")
    return [
        ("coarse / fine loss, frames 3+", figure(dynamic.value)),
        ("95% interval", interval(dynamic)),
        ("held-out videos", str(found["videos"])),
        ("held-out clips", str(found["clips"])),
        ("trainings (seeds)", str(found["seeds"])),
    ]


def _caption_ratio(found: dict[str, Any]) -> list[RatioRow]:
    """The ratio of caption losses, of a model that predicts captions."""
    name = "caption_coarse_fine_ratio"
    if name not in found:
        return []
    ratio, videos = estimate_in(found, name), found["videos"]
    return [RatioRow("coarse, captions", name, ratio.value, ratio.low, ratio.high, videos)]


def _uncertainty(seeds: int) -> str:
    """Where the intervals come from."""
    if seeds == 1:
        return (
            "Intervals come from resampling videos, not clips. One training: what another seed "
            "would change is not in the interval."
        )
    return (
        f"{seeds} trainings, each with a seed of its own: losses are means over them. Intervals "
        "come from resampling videos, not clips, and from what differs between the trainings."
    )


def _asking(similarity: float | None) -> str:
    """What the similarity of successive queries, -1 to 1, says about the language model."""
    if similarity is None:
        return ""
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


def _counts(report: Report) -> list[Cells]:
    counts = {_words(name): str(count) for name, count in report.filtering.items()}
    failed = {
        f"while decoding: {_words(name)}": str(count)
        for name, count in report.decoding.items()
        if name == "quarantined" or name.startswith("reason_")
    }
    return [[name, count] for name, count in (counts | failed).items()]


def _clip_rows(rows: Table) -> list[Cells]:
    """The best clips first; those without a ratio last."""
    name = "coarse_fine_ratio_dynamic"
    ranked = sorted(rows, key=lambda row: -float(row[name] or "-inf"))
    losses = "loss_coarse", "loss_fine"
    return [
        [row["video_id"], *(_digits(row[loss], 5) for loss in losses), _digits(row[name])]
        for row in ranked[:LISTED]
    ]


def _ratio_cells(row: dict[str, str], name: str) -> Cells:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return [_digits(row[name]), f"{_digits(low)} to {_digits(high)}" if low else "none"]


def _series_alt(place: str, rows: Table, name: str) -> str:
    points = "; ".join(f"{place} {row[place]}: {_digits(row[name])}" for row in rows)
    return f"Coarse loss divided by fine loss. {points}"


def _curves_alt(rows: Table) -> str:
    first, last = rows[0], rows[-1]
    ends = [
        f"{name} pass from {_digits(first[f'loss_{name}'])} to {_digits(last[f'loss_{name}'])}"
        for name in ("coarse", "fine")
    ]
    return f"Loss over {last['samples']} clips seen: {', '.join(ends)}"


def _digits(value: str, digits: int = 4) -> str:
    """A cell of a CSV file; empty where undefined."""
    return figure(float(value) if value else None, digits)


def _words(name: str) -> str:
    return name.removeprefix("reason_").replace("_", " ")


def _text(value: Any) -> str:
    return figure(value) if isinstance(value, float) else str(value)


def _uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
