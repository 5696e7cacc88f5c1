"""The pictures of the clips that a report shows, as files and inside the page."""

import io
from pathlib import Path

from PIL import Image

from fvlm.core.io import atomic_write
from fvlm.report.choice import Chosen
from fvlm.report.movie import encode_movie, movie_frames
from fvlm.report.page import PicturedClip
from fvlm.report.pictures import fixation_sheet, prediction_sheet, printable
from fvlm.report.view import ClipView

QUALITY = 80  # of the WebP copies inside the page


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


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=QUALITY)
    return buffer.getvalue()
