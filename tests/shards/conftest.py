"""A project folder with a toy stage that makes shards."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import fvlm

TOY = Path(__file__).with_name("toy_stage.py")
VIDEOS = [
    *(f"clip {number}.mp4" for number in range(11)),
    *("broken.mp4", "val/é.mp4", "val/b.mp4", "val/c.mp4"),
]


@dataclass(frozen=True)
class Project:
    """A folder with `videos.txt` and `params.yaml`, the inputs of the toy stage."""

    folder: Path
    toy: ModuleType

    def fill(self, *, videos: list[str] = VIDEOS, scale: int = 1) -> None:
        (self.folder / "videos.txt").write_text("\n".join(videos) + "\n")
        (self.folder / "params.yaml").write_text(f"scale: {scale}\n")

    def run(self) -> int:
        """Run the stage in this process; returns the number of shards it computed."""
        before = len(self.log)
        self.toy.main()
        return len(self.log) - before

    @property
    def log(self) -> list[str]:
        """Fingerprints of the shards computed so far, in order."""
        log = self.folder / "computed.log"
        return log.read_text().splitlines() if log.exists() else []

    @property
    def out(self) -> dict[str, bytes]:
        """The stage's output: file name -> content."""
        return {path.name: path.read_bytes() for path in sorted(self.folder.glob("data/toy/*"))}

    @property
    def kept(self) -> list[Path]:
        """Shards kept under .state."""
        return sorted(self.folder.glob(".state/shards/toy/*.tar"))

    @property
    def leftovers(self) -> list[Path]:
        """Temporary files and folders."""
        return [path for path in self.folder.rglob("*.tmp") if ".hypothesis" not in path.parts]


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The toy stage as a module."""
    spec = importlib.util.spec_from_file_location("toy_stage", TOY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of a child process that imports this checkout and is no DVC stage."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    root = str(Path(next(iter(fvlm.__path__))).parent)
    return own | {"PYTHONPATH": root, "DVC_NO_ANALYTICS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: ModuleType) -> Project:
    """A fresh project with 15 videos, as the working directory."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path, toy)
    project.fill()
    return project
