"""A clip as a short film: its frames, where each pass looked, and what was predicted.

Axes: T frames.
"""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from fvlm.core.errors import FvlmError
from fvlm.report.pictures import (
    ARMS,
    Captioned,
    attended,
    cell,
    grid,
    map_scale,
    path_cell,
    prediction_cell,
)
from fvlm.report.view import ClipView

RATE = 2  # frames shown a second
COLUMNS = 3  # few enough to be read on a phone
CONTROLS = 112  # pixels left empty below the pictures, where players lay their controls
# H.264 where this build of FFmpeg has it: every browser plays that.
CODECS = ("libx264", "libopenh264", "libvpx-vp9", "mpeg4")
# The macroblock tree of x264 reads memory that was never written: other bytes now and then.
X264 = {"crf": "21", "preset": "medium", "x264-params": "mbtree=0"}


def movie_frames(view: ClipView, title: str) -> Iterator[NDArray[np.uint8]]:
    """One captioned picture uint8 [height,width,3] a frame; height and width are even.

    Columns: the frame, the coarse and the last fine pass, where each looks and what it predicted;
    then persistence, the fixation path of the fine pass and the other passes.
    """
    scale = map_scale(view)
    others = [name for name in view.passes if name not in ("coarse", view.fine)]
    for t in range(len(view.frames)):
        cells = [("frame", cell(view.frames[t]))]
        cells += [_attention(view, name, t, scale) for name in ("coarse", view.fine)]
        cells += [_prediction(view, arm, t) for arm in ARMS]
        path = path_cell(view, view.passes[view.fine], until=t)
        cells.append((f"{view.fine} pass:\nfixation path", path))
        cells += [_attention(view, name, t, scale) for name in others]
        rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
        heading = f"{title}\nframe {t + 1} of {len(view.frames)}, {view.seconds[t]:.1f} s"
        yield np.asarray(grid(heading, rows, below=CONTROLS))


def _attention(view: ClipView, name: str, t: int, scale: float) -> Captioned:
    share = view.passes[name].cls_share
    return f"{name}:\nattention\nCLS {share:.0%}", attended(view, name, t, scale)


def _prediction(view: ClipView, arm: str, t: int) -> Captioned:
    picture, error = prediction_cell(view, arm, t)
    return f"{ARMS[arm].splitlines()[0]}\n{error or '(decoded)'}", picture


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
