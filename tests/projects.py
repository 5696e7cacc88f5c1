"""The pipeline as a user has it: a git clone with DVC, real videos, tiny real models."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from transformers import LlamaModel

from tests import tiny
from tests.forks import Forks

ROOT = Path(__file__).parents[1]
Run = Callable[..., str]

# name of the file, codec, seconds; 8 frames/s
VIDEOS = [
    ("street.mp4", "libx264", 5.0),
    ("sub folder/park ä.mkv", "libx264", 4.0),
    ("harbour.webm", "libvpx-vp9", 4.0),
    ("market.avi", "mpeg4", 4.5),
    ("bridge.mp4", "mpeg4", 4.0),
    ("station.mp4", "libx264", 4.25),
    ("long.mp4", "mpeg4", 12.0),
    ("short.mp4", "mpeg4", 1.0),
]
TINY: dict[str, dict[str, Any]] = {
    "collect": {"source": "videos"},
    "filter": {"min_seconds": 3.0, "max_seconds": 10.0},
    "decode": {
        "num_frames": 6,
        "frame_size": 32,
        "frames_per_second": 0.0,
        "clips_per_video": 1,
        "clips_per_shard": 2,
        "max_failed_fraction": 0.2,
    },
    "encode": {
        "dino": "weights/dino",
        "vae": "weights/vae",
        "dino_layers": 0,
        "layer": 2,
        "batch_frames": 12,
    },
    "model": {
        "llm": "weights/llm",
        "llm_layers": 0,
        "query_layers": 1,
        "head": "film",
        "head_channels": 256,
    },
    "train": {
        "token_noise": 0.0,
        "num_frames": 4,
        "batch_size": 4,
        "max_samples": 64,
        "warmup_samples": 4,
        "checkpoint_samples": 16,
    },
    "evaluate": {"num_frames": 5, "bootstrap_samples": 200},
}


def render(path: Path, codec: str, seconds: float, *, seed: int) -> None:
    """A moving bright square on noise, 64x48, 8 frames/s."""
    generator = np.random.default_rng(seed)
    background = generator.integers(0, 120, (48, 64, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(round(seconds * 8)):
            picture = background.copy()
            left = (number * 3 + seed * 7) % 48
            picture[16:32, left : left + 16] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def damage(path: Path) -> None:
    """Overwrite the last pictures; the first one and the index stay as they are."""
    content = bytearray(path.read_bytes())
    end = content.index(b"moov") - 4
    content[end - 500 : end] = np.random.default_rng(0).bytes(500)
    path.write_bytes(content)


def save_tiny_models(folder: Path) -> None:
    """Random models of the real classes in the formats of their hubs."""
    torch.manual_seed(0)
    tiny.dinov2(image_size=32, patch_size=8).save_pretrained(folder / "dino")
    tiny.vae(8, 8, 8, 8).save_pretrained(folder / "vae")
    llm = tiny.llama(vocab_size=32, hidden_size=16, num_hidden_layers=2)
    LlamaModel(llm).save_pretrained(folder / "llm")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `dino`, `vae` and `llm`."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_models(folder)
    return folder


@pytest.fixture
def video_folder(tmp_path: Path) -> Path:
    """A folder with one video of 2 seconds, `street ä.mp4`."""
    render(tmp_path / "street ä.mp4", "libx264", 2.0, seed=0)
    return tmp_path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git clone of the tracked files, with tiny parameters, videos and models, committed."""
    clone = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    keep = (
        "fvlm/",
        "pipeline/",
        "presets/",
        "assets/",
        ".dvc/config",
        ".dvc/plots.html",
        ".dvc/.gitignore",
        ".dvcignore",
        ".gitignore",
        "params.yaml",
        "dvc.yaml",
        "pyproject.toml",
        "data/.gitignore",
        "models/.gitignore",
    )
    for name in filter(None, listed.split("\0")):
        if name.startswith(keep) and (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    tiny.set_params(clone, TINY)
    save_tiny_models(clone / "weights")
    for seed, (name, codec, seconds) in enumerate(VIDEOS):
        render(clone / "videos" / name, codec, seconds, seed=seed)
    (clone / "videos" / "broken.mp4").write_bytes(b"not a video at all" * 100)
    render(clone / "videos" / "damaged.mp4", "libx264", 4.0, seed=50)
    damage(clone / "videos" / "damaged.mp4")
    (clone / "videos" / "street.txt").write_text("A bright square moves over noise.")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "start"]):
        subprocess.run(["git", *command], cwd=clone, check=True, env=environment())
    return clone


def environment(*, forked: bool = True) -> dict[str, str]:
    """Of a user's commands. forked: `python` starts stages at once, see `tests/forks.py`."""
    names = {
        f"GIT_{who}_{what}": "test@example.org" if what == "EMAIL" else "test"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    first = [str(forks().bin)] if forked else []
    path = os.pathsep.join([*first, str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | names | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@cache
def forks() -> Forks:
    """The server of this test run, started when first asked for."""
    folder = Path(tempfile.mkdtemp())
    started = Forks(folder, environment(forked=False))
    atexit.register(shutil.rmtree, folder)
    atexit.register(started.close)
    return started


def output_of(
    command: Sequence[str],
    folder: Path,
    *,
    code: int = 0,
    imports: Path | None = None,
    forked: bool = True,
) -> str:
    """What a command printed in the folder; fails when its exit code differs.

    imports: where its modules are found before all others. forked: as of `environment`.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(forked=forked) | ({"PYTHONPATH": str(imports)} if imports else {}),
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def run(workspace: Path) -> Run:
    """Runs a command in the workspace."""

    def run(*command: str, code: int = 0) -> str:
        return output_of(command, workspace, code=code)

    return run


@pytest.fixture
def restored(run: Run) -> Iterator[None]:
    """Afterwards the workspace is as committed."""
    yield
    run("git", "checkout", "-q", ".")
    run("dvc", "checkout", "-q")
