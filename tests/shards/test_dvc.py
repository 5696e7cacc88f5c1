"""With real DVC: shards are cached, linked, restored, pushed and pulled."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
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
    repository.dvc("remote", "add", "-q", "-d", "store", str(project.folder / "remote"))
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


def test_the_cache_and_the_lock_file_hand_all_shards_back(repository: Repository) -> None:
    """Also those without a sample, and the notes: `.state` is no more than a shortcut."""
    project = repository.project
    videos = [f"broken {number}.mp4" for number in range(9)]
    project.fill(videos=[*Path("videos.txt").read_text().splitlines(), *videos])
    total = repository.repro()
    first = project.out
    assert len(json.loads(first["manifest.json"])["quarantined"]) == 10
    assert total > len(first) - 1  # some shards have no file
    shutil.rmtree(".state")
    assert f"toy: {total} of {total} shards handed back" in repository.dvc("repro", "-f")
    assert len(project.log) == total
    assert project.out == first
    videos = Path("videos.txt").read_text().splitlines()
    project.fill(videos=videos, scale=2)
    assert repository.repro() == total
    project.fill(videos=videos)
    repository.dvc("repro", "-f")  # dvc.lock has named others meanwhile
    assert len(project.log) == 2 * total
    assert project.out == first


def test_a_fresh_clone_makes_what_is_new_only(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any
) -> None:
    total = repository.repro()
    remote, clone = repository.project.folder / "remote", tmp_path_factory.mktemp("clone")
    repository.dvc("remote", "add", "-q", "-d", "store", str(remote))
    repository.dvc("push", "-q")
    repository.commit()
    repository.call("git", "clone", "-q", ".", str(clone))
    monkeypatch.chdir(clone)
    project = repository.project = replace(repository.project, folder=clone)
    repository.dvc("pull", "-q")
    project.fill(videos=[*Path("videos.txt").read_text().splitlines(), "clip 99.mp4"])
    assert 1 <= repository.repro() <= 3 < total
    notes = json.loads(project.out["manifest.json"])["quarantined"]
    assert [note["video_id"] for note in notes] == ["broken.mp4"]
    incremental = project.out
    shutil.rmtree(".state")
    shutil.rmtree(".dvc/cache")
    assert repository.repro() >= total  # there is nothing left to hand back
    assert project.out == incremental


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


COUNTED = """
import subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(next(line for line in open("/proc/self/io") if line.startswith("rchar")).split()[1])
sys.exit(code)
"""


def bytes_read(said: str) -> int:
    """By a command and the processes that it waited for."""
    return int(said.splitlines()[-1])


def test_what_a_stage_has_hashed_is_read_by_neither_dvc_nor_the_next_stage(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(repository._environment, "TOY_WIDTH", "30000")
    command = [sys.executable, "-c", COUNTED, sys.executable, "-m", "dvc", "repro", "-q"]
    usual = bytes_read(repository.call(*command))
    size = sum(path.stat().st_size for path in Path("data/toy").iterdir())
    assert size > 40e6
    repository.project.fill(scale=2)
    monkeypatch.setitem(repository._environment, "TOY_TELLS", "yes")
    assert (
        usual - bytes_read(repository.call(*command)) > 0.75 * size
    )  # the second also starts DVC to tell it
    assert "up to date" in repository.dvc("status")
    for path in Path("data/toy").iterdir():
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        assert Path(".dvc/cache/files/md5", md5[:2], md5[2:]).samefile(path)
    before = io_of_this_process()
    open_shards(Path("data/toy"), split="train").close()
    assert io_of_this_process() - before < 0.1 * size


def io_of_this_process() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])
