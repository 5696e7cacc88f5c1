"""A project with its own copy of the code, in which the commands and stages are processes."""

import shutil
import subprocess
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from pipeline import collect, filter
from tests import tiny
from tests.projects import ROOT, output_of, render

Call = Callable[..., str]


WHOLE = {"frames_per_second": 0.0, "clips_per_video": 1}  # a clip is a whole video


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Path:
    """Two videos, filtered and decoded."""
    folder = tmp_path_factory.mktemp("decoded")
    for code in ("fvlm", "pipeline"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / code, folder / code, ignore=ignored)
    shutil.copy(ROOT / "params.yaml", folder)
    shape = {"num_frames": 3, "frame_size": 16, "clips_per_shard": 2, **WHOLE}
    values: dict[str, dict[str, Any]] = {
        "collect": {"source": "videos"},
        "filter": {"min_seconds": 1.0, "max_seconds": 4.0},
        "decode": shape,
        "encode": {"dino": f"{tiny_models}/dino", "vae": f"{tiny_models}/vae"},
        "model": {"llm": f"{tiny_models}/llm"},
    }
    tiny.set_params(folder, values)
    for seed in range(2):
        render(folder / f"videos/{seed}.mp4", "mpeg4", 2.0, seed=seed)
    with chdir(folder):
        collect.main()
        filter.main()
    names = (["user.name", "test"], ["user.email", "test@example.org"])
    for command in (["init", "-q"], *(["config", *name] for name in names)):
        subprocess.run(["git", *command], cwd=folder, check=True)
    call_in(folder, "pipeline.decode")
    return folder


def call_in(folder: Path, *command: str, code: int = 0) -> str:
    return output_of(["python", "-m", *command], folder, code=code, imports=folder)


@pytest.fixture
def copy(decoded: Path, tmp_path: Path) -> Path:
    """The project, for one test to change."""
    return shutil.copytree(decoded, tmp_path / "copy", symlinks=True)


@pytest.fixture
def call(copy: Path) -> Call:
    """call("module", "argument", code=0): what a module prints in the project."""

    def run(*command: str, code: int = 0) -> str:
        return call_in(copy, *command, code=code)

    return run
