"""The folders of rendered control corpora, made once; what they are for: `controls.py`."""

from functools import partial
from pathlib import Path

from fvlm.core.identity import made_by
from fvlm.core.io import cache_folder, hash_json
from fvlm.corpus.built import build_once
from fvlm.corpus.controls import ASKING, RenderedCorpus
from fvlm.corpus.demo import clip_names, demo_folder, film_version
from fvlm.corpus.questions import SUFFIX

RENDERER = "fvlm.corpus.rendered_files:render_clip"


def rendered_folder(corpus: RenderedCorpus, *, clips: int, seed: int) -> Path:
    """The folder of `clips` videos, rendered when missing or damaged.

    Captions stand beside them; in corpora of ASKING, questions, too.

    A pure function of its arguments: clip n is the same in a larger corpus.
    """
    folder = cache_folder() / "rendered" / f"{corpus}-{_version(corpus, clips, seed)}"
    names = [clip_name(number) for number in range(clips)]
    if corpus in ASKING:
        names += [Path(name).stem + SUFFIX for name in names]
    return build_once(folder, names, partial(_build, corpus, clips=clips, seed=seed))


def clip_name(number: int) -> str:
    """File name of clip `number`, counted from 0."""
    return f"clip-{number:05d}.mp4"


def _build(corpus: RenderedCorpus, folder: Path, *, clips: int, seed: int) -> None:
    # PyAV and numpy cost more time to import than all of `collect` takes.
    from fvlm.corpus.rendered_files import render_clips

    film = [demo_folder() / name for name in clip_names()] if corpus == "question_on_film" else []
    paths = [folder / clip_name(number) for number in range(clips)]
    render_clips(corpus, paths, seed=seed, film=film)


def _version(corpus: RenderedCorpus, clips: int, seed: int) -> str:
    """Another renderer, another x264 (it comes with PyAV), size or film lives in another folder."""
    film = [film_version()] if corpus == "question_on_film" else []
    return hash_json([made_by(RENDERER), clips, seed, *film])[:12]
