"""A clip as a short film: its frames, where each pass looked, and what was predicted.

Axes: T frames.
"""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvlm.errors import FvlmError
from fvlm.report.pictures import (
    ARMS,
    CELL,
    GAP,
    LINE,
    PAPER,
    attention_cell,
    cell,
    map_scale,
    mark_fixation,
    path_cell,
    prediction_cell,
    write_text,
)
from fvlm.report.view import ClipView

RATE = 2  # frames shown a second
# H.264 where this build of FFmpeg has it: every browser plays that.
CODECS = ("libx264", "libopenh264", "libvpx-vp9", "mpeg4")
# The macroblock tree of x264 reads memory that was never written: other bytes now and then.
X264 = {"crf": "21", "preset": "medium", "x264-params": "mbtree=0"}


def movie_frames(view: ClipView, title: str) -> Iterator[NDArray[np.uint8]]:
    """One captioned picture uint8 [height,width,3] a frame; height and width are even.

    Above: the frame and every pass's attention, ending in the fixation path of the fine pass.
    Below: what coarse pass, fine pass and persistence predicted.
    """
    scale, fine = map_scale(view), view.passes[view.fine]
    for t in range(len(view.frames)):
        upper = [("frame", cell(view.frames[t]))]
        for name, found in view.passes.items():
            picture = attention_cell(view.frames[t], found.maps[t], scale)
            upper.append((f"{name}: attention", mark_fixation(picture, found.fixations[t])))
        upper.append(("fixation path", path_cell(view, fine, until=t)))
        lower = []
        for arm, label in ARMS.items():
            picture, error = prediction_cell(view, arm, t)
            lower.append((f"{label.splitlines()[0]}  {error.removeprefix('error ')}", picture))
        heading = f"{title}   frame {t + 1} of {len(view.frames)}, {view.seconds[t]:.1f} s"
        yield _compose(heading, upper, lower)


def _compose(
    heading: str, upper: list[tuple[str, Image.Image]], lower: list[tuple[str, Image.Image]]
) -> NDArray[np.uint8]:
    width = GAP + max(len(upper), len(lower)) * (CELL + GAP)
    height = LINE + GAP + 2 * (LINE + CELL + GAP)
    canvas = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
    write_text(canvas, GAP, GAP // 2, heading)
    for row, cells in enumerate((upper, lower)):
        top = LINE + GAP + row * (LINE + CELL + GAP)
        for column, (caption, picture) in enumerate(cells):
            x = GAP + column * (CELL + GAP)
            write_text(canvas, x, top, caption, dim=True)
            canvas.paste(picture, (x, top + LINE))
    return np.asarray(canvas)


def encode_movie(pictures: Iterable[NDArray[np.uint8]]) -> bytes:
    """Pictures uint8 [height,width,3] of one even size as an MP4, each for half a second.

    The same pictures give the same bytes. Raises FvlmError when FFmpeg has none of the encoders.
    """
    codec = next((name for name in CODECS if name in av.codecs_available), None)
    if codec is None:
        raise FvlmError(f"this build of FFmpeg encodes none of {', '.join(CODECS)}")
    buffer = io.BytesIO()
    options = {"fflags": "+bitexact"}
    with av.open(buffer, "w", format="mp4", options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        stream.time_base = Fraction(1, RATE)
        if codec == "libx264":
            stream.options = {**X264}
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
