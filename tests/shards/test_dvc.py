"""With real DVC: shards are cached, linked, restored, pushed and pulled."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.errors import ShardError
from fvlm.shards.read import open_shards

DVC_YAML = f"""\
stages:
  toy:
    cmd: {sys.executable} -m toy_stage
    deps: [toy_stage.py, videos.txt]
    params: [scale]
    outs: [data/toy]
"""


class Repository:
    """A git and DVC repository around the toy stage."""

    def __init__(self, project: Any, environment: dict[str, str]) -> None:
        self.project, self._environment = project, environment
        identity = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
        self._environment |= identity | {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
        programs = Path(sys.executable).parent  # the queue's worker calls `dvc` by name
        self._environment["PATH"] = f"{programs}:{os.environ['PATH']}"
        Path("dvc.yaml").write_text(DVC_YAML)
        Path(".gitignore").write_text(".state\ncomputed.log\n*.tmp\n/remote\n__pycache__\n")
        shutil.copy(Path(__file__).with_name("toy_stage.py"), "toy_stage.py")
        self.call("git", "init", "-q")
        self.dvc("init", "-q")
        self.dvc("config", "cache.type", "hardlink,reflink,copy")
        self.commit()

    def commit(self) -> None:
        self.call("git", "add", "-A")
        self.call("git", "commit", "-q", "-m", "state")

    def dvc(self, *arguments: str) -> str:
        return self.call(sys.executable, "-m", "dvc", *arguments)

    def call(self, *command: str) -> str:
        # Not a pipe: the queue's worker inherits it and would keep it open.
        with tempfile.TemporaryFile("w+") as output:
            code = subprocess.run(
                command,
                env=self._environment,
                stdout=output,
                stderr=output,
                timeout=120,
                check=False,
            ).returncode
            output.seek(0)
            text = output.read()
        assert code == 0, text
        return text

    def repro(self) -> int:
        """Bring the stage up to date; returns the number of shards computed."""
        before = len(self.project.log)
        self.dvc("repro", "-q")
        return len(self.project.log) - before


@pytest.fixture
def repository(project: Any, environment: dict[str, str]) -> Repository:
    return Repository(project, dict(environment))


def names_of_inodes(folder: Path) -> set[int]:
    return {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def test_one_more_video_then_back_to_earlier_parameters(repository: Repository) -> None:
    project = repository.project
    total = repository.repro()
    first = project.out
    shards = list(Path("data/toy").glob("*.tar"))
    cached = names_of_inodes(Path(".dvc/cache/files"))
    assert all(path.stat().st_ino in cached for path in shards)  # the disk holds each shard once
    assert all(path.stat().st_ino in cached for path in project.kept)

    videos = Path("videos.txt").read_text().splitlines()
    project.fill(videos=[*videos, "clip 99.mp4"])
    assert 1 <= repository.repro() <= 3 < total
    known = [path for path in Path("data/toy").glob("*.tar") if path.stat().st_ino in cached]
    assert len(known) >= total - 3

    # Nothing is left under .state: what is known comes from DVC's cache alone.
    for kept in project.kept:
        kept.unlink()
    project.fill(videos=[*videos, "clip 98.mp4"])
    assert 1 <= repository.repro() <= 3

    project.fill()
    assert "Stage 'toy' is cached" in repository.dvc("repro")
    assert project.out == first


@pytest.mark.slow
def test_experiments(repository: Repository) -> None:
    project = repository.project
    total = repository.repro()
    repository.commit()
    first = project.out

    before = len(project.log)
    repository.dvc("exp", "run", "--temp", "-q", "-S", "scale=2")
    assert len(project.log) - before == total
    assert project.out == first  # the workspace is not touched
    project.fill(videos=[*Path("videos.txt").read_text().splitlines(), "clip 99.mp4"])
    before = len(project.log)
    repository.dvc("exp", "run", "--temp", "-q")
    assert 1 <= len(project.log) - before <= 3

    repository.dvc("exp", "run", "--queue", "-q", "-S", "scale=3")
    before = len(project.log)
    repository.dvc("exp", "run", "--run-all", "-q")
    assert total <= len(project.log) - before <= total + 1


def test_push_pull_and_checkout(repository: Repository) -> None:
    project = repository.project
    repository.repro()
    first = project.out
    repository.dvc("remote", "add", "-d", "store", str(project.folder / "remote"))
    repository.dvc("push", "-q")
    shutil.rmtree(".dvc/cache")
    shutil.rmtree(".state")
    shutil.rmtree("data/toy")
    repository.dvc("pull", "-q")
    assert project.out == first
    shutil.rmtree("data/toy")
    repository.dvc("checkout", "-q")
    assert project.out == first
    assert "up to date" in repository.dvc("status")


def test_a_damaged_object_in_the_cache_is_replaced(repository: Repository) -> None:
    project = repository.project
    repository.repro()
    first = project.out
    shard = next(Path("data/toy").glob("*.tar"))
    cached = next(
        path for path in Path(".dvc/cache").rglob("*") if path.stat().st_ino == shard.stat().st_ino
    )
    data = cached.read_bytes()
    cached.chmod(0o644)
    cached.write_bytes(data[:1000] + b"x" + data[1001:])
    cached.chmod(0o444)
    with pytest.raises(ShardError, match=r"run `dvc repro -f -s toy`"):
        open_shards(Path("data/toy"), split=shard.name.split("-")[0])
    before = len(project.log)
    repository.dvc("repro", "-q", "-f", "-s", "toy")
    assert len(project.log) - before == 1
    assert project.out == first
    assert cached.read_bytes() == data
