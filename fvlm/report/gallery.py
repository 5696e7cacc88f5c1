"""Which clips a report shows, and their pictures as files and inside the page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import Field

from fvlm.core.io import atomic_write
from fvlm.core.params import Params
from fvlm.report.movie import encode_movie, movie_frames
from fvlm.report.page import PicturedClip
from fvlm.report.pictures import fixation_sheet, prediction_sheet, printable
from fvlm.report.view import ClipView
from fvlm.statistics.evaluation import ClipRow
from fvlm.statistics.verdict import ROUNDING

QUALITY = 80  # of the WebP copies inside the page


class ReportParams(Params):
    """Section `report` of params.yaml."""

    clips: int = Field(ge=1)


@dataclass(frozen=True)
class Chosen:
    """A clip to show: its sample key, why it is shown, coarse / fine loss over frames t >= 3."""

    key: str
    place: str
    ratio: float


def choose_clips(rows: Sequence[ClipRow], count: int) -> list[Chosen]:
    """The `count` best and worst clips by their ratio, best first."""
    ratios = {row.key: row.coarse_fine_ratio_dynamic for row in rows}
    ranked = sorted(
        ((key, ratio) for key, ratio in ratios.items() if ratio), key=lambda clip: -clip[1]
    )
    total = len(ranked)
    return [
        Chosen(key, _place(rank, total, ratio), ratio)
        for rank, (key, ratio) in enumerate(ranked)
        if rank < count or rank >= total - count
    ]


def describe_choice(chosen: Sequence[Chosen], total: int) -> str:
    """A sentence on which clips are shown."""
    if len(chosen) == total:
        return f"All {total} held-out clips."
    return f"The best and the worst of {total} held-out clips."


def picture_clip(
    view: ClipView, chosen: Chosen, *, video_id: str, caption: str, folder: Path
) -> PicturedClip:
    """Write two sheets (PNG) and a film (MP4) named after the clip's key; copies for the page."""
    title = printable(video_id)
    fixations, predictions = fixation_sheet(view, title), prediction_sheet(view, title)
    attention, errors = describe_attention(view), describe_errors(view)
    scenes = list(movie_frames(view, title))
    movie = encode_movie(scenes)
    for name, sheet in (("attention", fixations), ("predictions", predictions)):
        with atomic_write(folder / f"{chosen.key}-{name}.png") as file:
            sheet.save(file, format="PNG")
    with atomic_write(folder / f"{chosen.key}.mp4") as file:
        file.write(movie)
    return PicturedClip(
        place=chosen.place,
        video_id=video_id,
        caption=caption,
        ratio=chosen.ratio,
        fixations=_webp(fixations),
        fixations_alt=f"Frames of {video_id} under the attention of every pass. "
        + describe_fixations(view),
        attention=attention,
        predictions=_webp(predictions),
        predictions_alt=f"Frames of {video_id} as they were and as predicted. {errors}",
        errors=errors,
        movie=movie,
        poster=_webp(Image.fromarray(scenes[len(scenes) // 2])),
        movie_alt=f"Film of {video_id}: for each of its {len(view.frames)} frames the attention of "
        "every pass, the fixation path of the fine pass, and the predictions",
    )


def describe_attention(view: ClipView) -> str:
    """The figures of the attention sheet."""
    passes = "; ".join(
        f"{name.capitalize()} pass: entropy {found.entropy:.0%} of the maximum, "
        f"peak {found.peak:.1f} times uniform, CLS {found.cls_share:.0%}"
        for name, found in view.passes.items()
    )
    return f"{passes}."


def describe_fixations(view: ClipView) -> str:
    """Where the rings of the attention sheet lie."""
    passes = "; ".join(
        f"{name} pass {_places(found.fixations)}" for name, found in view.passes.items()
    )
    return f"Most attention: {passes}."


def describe_errors(view: ClipView) -> str:
    """The figures of the prediction sheet."""
    means = {name: float(values[1:].mean()) for name, values in view.losses.items()}
    errors = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
    return f"Mean error after frame 1: {errors}."


def _places(fixations: list[tuple[float, float]]) -> str:
    """In how many frames the fixation lies left, in the middle, and right of the frame."""
    thirds = [min(int(x * 3), 2) for x, _ in fixations]
    names = ("on the left", "in the middle", "on the right")
    return ", ".join(f"{name} in {thirds.count(third)} frames" for third, name in enumerate(names))


def _place(index: int, total: int, ratio: float) -> str:
    """The rank of a clip; the best may still be worse than without foveation, the worst better."""
    if index == 0:
        return f"Best of {total}" + (", still worse" if ratio < 1 - ROUNDING else "")
    if index == total - 1:
        return f"Worst of {total}" + (", still better" if ratio > 1 + ROUNDING else "")
    return f"{index + 1} of {total}"


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=QUALITY)
    return buffer.getvalue()
