"""A small film with known keyframes, rendered once; files of no meaning, and what is listed."""

from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from fvlm.corpus.listed import ListedVideo
from fvlm.corpus.listing import CollectParams, list_videos

FRAMES, RATE, GOP = 96, 24, 24


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 frames at 24 frames/s with B-frames, a keyframe every 24, brightness rising by frame."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    options = {"g": str(GOP), "keyint_min": str(GOP), "sc_threshold": "0", "bf": "2"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(FRAMES):
            picture = np.full((48, 64, 3), 2 * number + 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def footage_film(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two clips of 12 s with red at the sides; in the middle, see `footage_level`."""
    folder = tmp_path_factory.mktemp("footage")
    for clip in (0, 1):
        with av.open(str(folder / f"{clip}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=4, options={"crf": "4"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for frame in range(48):
                picture = np.full((48, 64, 3), footage_level(clip, frame // 4), np.uint8)
                picture[:, :8] = picture[:, 56:] = 255, 0, 0
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    return [folder / "0.mp4", folder / "1.mp4"]


def footage_level(clip: int, second: int) -> int:
    """Grey of `footage_film`."""
    return 30 + 100 * clip + 8 * second


def touch(path: Path, content: bytes = b"video") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def listed(source: Path | str, **names: str) -> list[ListedVideo]:
    return list_with_rest(source, **names)[0]


def list_with_rest(source: Path | str, **names: str) -> tuple[list[ListedVideo], Counter[str]]:
    return list_videos(CollectParams(source=str(source), control_clips=2, control_seed=0, **names))


def ids(source: Path | str) -> list[str]:
    return [video.video_id for video in listed(str(source))]
