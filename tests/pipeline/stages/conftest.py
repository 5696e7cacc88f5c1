"""Small projects in which the real stages run within a second: tiny videos, tiny encoders."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from pipeline import collect, filter, paths
from tests import tiny

ROOT = Path(__file__).parents[3]
NUM_VIDEOS = 10
PARAMS: dict[str, dict[str, Any]] = {
    "collect": {"source": "videos"},
    "filter": {"min_seconds": 1.0, "max_seconds": 4.0},
    "decode": {
        "num_frames": 3,
        "frame_size": 16,
        "frames_per_second": 0.0,
        "clips_per_video": 1,
        "clips_per_shard": 2,
        "max_failed_fraction": 0.3,
    },
    "encode": {
        "dino": "weights/dino",
        "vae": "weights/vae",
        "dino_layers": 0,
        "layer": 1,
        "batch_frames": 6,
    },
}


def render(path: Path, *, seed: int, seconds: int = 2) -> None:
    """A moving square, 32x24, 4 frames/s, MPEG-4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for number in range(4 * seconds):
            picture = np.full((24, 32, 3), seed * 9, np.uint8)
            picture[4:12, number : number + 8] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def damage(path: Path) -> None:
    """Destroy the pictures behind the first one; the index stays as it is."""
    content = bytearray(path.read_bytes())
    end = content.index(b"moov") - 4
    content[end - 60 : end] = np.random.default_rng(0).bytes(60)
    path.write_bytes(content)


def save_encoders(folder: Path) -> None:
    """Random models of the real classes in the formats of their hubs."""
    torch.manual_seed(0)
    frame = {"image_size": 16, "patch_size": 8}
    dino = tiny.dinov2(hidden_size=8, num_hidden_layers=2, num_attention_heads=1, **frame)
    dino.save_pretrained(folder / "dino")
    tiny.vae(4, 4, 4, 4).save_pretrained(folder / "vae")


@pytest.fixture(scope="session")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `filter`: ten accepted videos, one of which cannot be decoded."""
    folder = tmp_path_factory.mktemp("filtered")
    (folder / "videos").mkdir()
    for seed in range(NUM_VIDEOS):
        render(folder / "videos" / f"{seed}.mp4", seed=seed)
    damage(folder / "videos" / "4.mp4")
    shutil.copy(ROOT / "params.yaml", folder)
    tiny.set_params(folder, PARAMS)
    save_encoders(folder / "weights")
    with chdir(folder):
        collect.main()
        filter.main()
    return folder


@pytest.fixture
def project(filtered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `filtered` as the working directory; the videos stay where they are."""
    for name in ("params.yaml", "data", "weights"):
        source, target = filtered / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Launcher:
    """A process that runs one stage in forks of itself; see `launcher.py`."""

    def __init__(self, stage: str) -> None:
        here = Path(__file__)
        faults = here.with_name("faults.py")
        self._process = subprocess.Popen(
            [sys.executable, str(here.with_name("launcher.py")), stage, str(faults)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        self.out = {"decode": paths.FRAMES, "encode": paths.ENCODED}[stage]
        self.metrics = {"decode": paths.DECODE_METRICS, "encode": paths.ENCODE_METRICS}[stage]
        self.stage = stage
        self._said = tempfile.NamedTemporaryFile("w")  # noqa: SIM115 - closed by close()

    def start(self, folder: Path, **order: Any) -> int:
        """Begin a run in `folder`; returns the id of its process (and process group)."""
        assert self._process.stdin is not None
        text = json.dumps({"folder": str(folder), "said": self._said.name, **order})
        print(text, file=self._process.stdin, flush=True)
        return int(self._answer())

    def finish(self) -> tuple[int, dict[str, int]]:
        """Wait for the run: exit code, and operations by kind when it was not disturbed."""
        answer = json.loads(self._answer())
        return answer["code"], answer["counts"]

    def run(self, folder: Path, **order: Any) -> int:
        """A whole run; returns its exit code."""
        self.start(folder, **order)
        return self.finish()[0]

    @property
    def said(self) -> str:
        """What the last run printed."""
        return Path(self._said.name).read_text()

    def close(self) -> None:
        self._process.communicate()
        self._said.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@pytest.fixture(scope="session")
def launcher() -> Iterator[Callable[[str], Launcher]]:
    """launcher("decode"): one process a stage, started when first asked for."""
    started: dict[str, Launcher] = {}

    def get(stage: str) -> Launcher:
        if stage not in started:
            started[stage] = Launcher(stage)
        return started[stage]

    yield get
    for process in started.values():
        process.close()
