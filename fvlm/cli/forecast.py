"""What a run will take: clips, disk space, hours and downloads, before any of it is spent.

Space follows from params.yaml and from what the pretrained parts say of themselves. Hours are those
of the rates that this checkout's last runs of the stages had; without one there is no guess.
"""

from collections.abc import Iterator
from contextlib import suppress

from fvlm.cli.parts import UNTRAINED, Parts
from fvlm.cli.rules import Sections
from fvlm.core.errors import FvlmError
from fvlm.core.io import read_json, state_folder
from fvlm.core.rows import Rows
from fvlm.corpus.controls import RENDERED
from fvlm.corpus.listing import list_videos
from fvlm.video.shards import AcceptedVideos
from fvlm.weights.resolve import PACKAGE, is_at_hand, local_folder
from pipeline.paths import MANIFEST, VIDEOS


def forecast(params: Sections, parts: Parts) -> Iterator[str]:
    """Lines that say what the stages will take. Raises SourceError as collect does."""
    videos = count_videos(params)
    clips = None if videos is None else count_clips(params, videos)
    if videos is None:
        yield f"{params.collect.source}: how many videos there are is known after `collect`"
    elif clips is None:
        yield f"{videos:,} videos at most: how many clips they have is known after `filter`"
    else:
        yield f"{videos:,} videos, {clips:,} clips at most: filter may accept fewer"
        for stage, size in bytes_of_clip(params, parts).items():
            space = f"{stage}: {in_bytes(size)} a clip, {in_bytes(size * clips)} in all"
            yield f"{space}; {hours(stage, 'clips_per_second', clips)}"
    train = params.train
    models = len(train.seeds) * (1 + train.coarse_only + len(train.pooled_tokens))
    clips = train.max_samples * models
    yield f"train: {clips:,} clips seen; {hours('train', 'samples_per_second', clips)}"
    for key, source in missing(params).items():
        yield f"{key}: {source} will be downloaded"


def count_videos(params: Sections) -> int | None:
    """How many videos the source has; None where collect makes them first."""
    if params.collect.source not in ("demo", *RENDERED):
        return len(list_videos(params.collect)[0])
    return Rows(VIDEOS).count() if VIDEOS.exists() else None


def count_clips(params: Sections, videos: int) -> int | None:
    """How many clips so many videos have at most; None where that depends on how long they are.

    The last filter knew that, if it had as many videos.
    """
    if params.decode.clips_per_video:
        return videos * params.decode.clips_per_video
    if MANIFEST.exists() and Rows(MANIFEST).count() == videos:
        return AcceptedVideos(MANIFEST, params.decode).clips
    return None


def bytes_of_clip(params: Sections, parts: Parts) -> dict[str, int]:
    """Bytes that a clip takes in the shards of each stage; without encode where parts are missing.

    DVC's cache shares them where the file system has hard links.
    """
    frames, size = params.decode.num_frames, params.decode.frame_size
    found = {"decode": frames * 3 * size**2}
    dino, vae = parts.dino(params.encode.dino), parts.vae(params.encode.vae)
    if dino and vae:
        channels, height, width = vae.latent_shape(size)
        values = channels * height * width
        values += dino.num_tokens(size) * dino.width * params.encode.tokens
        found["encode"] = 2 * frames * values  # float16
    return found


def hours(stage: str, key: str, clips: int) -> str:
    """How long so many clips take at the rate of the stage's last run."""
    with suppress(FvlmError):
        rate = read_json(state_folder() / "timings" / f"{stage}.json")[key]
        if rate:
            return f"{clips / rate / 3600:.1f} hours at the {rate:.1f} clips/s of the last run"
    return "no rate is known: run it on a few hundred videos first"


def missing(params: Sections) -> dict[str, str]:
    """Sources by key whose weights lie on the model hub, and not here."""
    sources = {
        "encode.dino": params.encode.dino,
        "encode.vae": params.encode.vae,
        "model.llm": params.model.llm,
    }
    return {
        key: source
        for key, source in sources.items()
        if not source.startswith((PACKAGE, UNTRAINED))
        and local_folder(source) is None
        and not is_at_hand(source)
    }


def in_bytes(count: float) -> str:
    """1.2 MB, 4.7 TB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
