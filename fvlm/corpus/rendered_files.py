"""The clips of a control corpus as H.264 files with a caption, and questions, beside each.

Every state is shown for STATE_SECONDS and begins with a keyframe, so that compression leaves
nothing of one state in the next; the frames after it repeat it and take a few bytes. A file lasts
24 seconds, as real clips do, and holds about 20 kB, or 60 kB where footage lies behind.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av

from fvlm.core.progress import Progress
from fvlm.corpus.controls import RenderedCorpus
from fvlm.corpus.rendered_film import footage
from fvlm.corpus.rendered_questions import ask
from fvlm.corpus.rendered_scenes import PIXELS, caption, pictures

RATE = 1  # frames per second
STATE_SECONDS = 3  # 8 states are 24 s: within the default bounds of `filter`
FRAMES_PER_STATE = RATE * STATE_SECONDS
# No visible loss. The same libraries write the same bytes: one thread, and no macroblock tree,
# which reads memory that was never written: 7 of 1,000 files differed between two renderings.
OPTIONS = {
    "crf": "18",
    "preset": "veryfast",
    "threads": "1",
    "x264-params": f"keyint={FRAMES_PER_STATE}:min-keyint={FRAMES_PER_STATE}:scenecut=0:mbtree=0",
}
CHUNK = 16  # clips handed to a process at once


def render_clips(
    corpus: RenderedCorpus, paths: Sequence[Path], *, seed: int, film: Sequence[Path] = ()
) -> None:
    """Render clip 0, 1, .. to `paths`, on all cores. film: see `render_clip`."""
    render = partial(render_clip, corpus, seed=seed, film=film)
    # Spawned: a forked process would inherit the locks of torch's threads.
    with (
        ProcessPoolExecutor(mp_context=get_context("spawn")) as workers,
        Progress(f"render {corpus}", total=len(paths), unit="clip") as progress,
    ):
        for _ in workers.map(render, range(len(paths)), paths, chunksize=CHUNK):
            progress.advance()


def render_clip(
    corpus: RenderedCorpus, number: int, path: Path, *, seed: int, film: Sequence[Path] = ()
) -> None:
    """Write clip `number`; beside it its caption, a text file, and its questions, if it has any.

    film: the clips that question_on_film takes its backgrounds from.
    """
    behind = footage(film, number, seed=seed) if corpus == "question_on_film" else ()
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=RATE, options=OPTIONS)
        stream.width = stream.height = PIXELS
        stream.pix_fmt = "yuv420p"
        for picture in pictures(corpus, number, seed=seed, behind=behind):
            for _ in range(FRAMES_PER_STATE):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path.with_suffix(".txt").write_text(caption(corpus, number, seed=seed) + "\n")
    if questions := ask(corpus, number, seed=seed):
        lines = "".join(f"{json.dumps(question)}\n" for question in questions)
        path.with_suffix(".questions.jsonl").write_text(lines)
