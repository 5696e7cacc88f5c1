"""Runs of one stage at the same time, as of experiments: real processes that share shards."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.errors import FvlmError

STAGE = Path(__file__).with_name("toy_stage.py")


class Runs:
    """Runs of the toy stage in folders of their own that keep their shards in one place."""

    def __init__(self, project: Any, environment: dict[str, str]) -> None:
        self.project = project
        self._environment = environment | {"DVC_ROOT": str(project.folder)}
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, name: str, *, scale: int = 1, paused: bool = False, within: Sequence[str] = ()
    ) -> "subprocess.Popen[str]":
        """Begin a run; a paused one waits behind its first shard, until `go_on`.

        within: a command that runs another one.
        """
        folder = self.project.folder / name
        folder.mkdir()
        (folder / "params.yaml").write_text(f"scale: {scale}\n")
        (folder / "videos.txt").write_bytes((self.project.folder / "videos.txt").read_bytes())
        process = subprocess.Popen(
            [*within, sys.executable, str(STAGE)],
            cwd=folder,
            env=self._environment | {"TOY_PAUSE": "yes" if paused else ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        while paused and not (folder / "paused").exists():
            assert process.poll() is None, "it ended before its first shard"
            time.sleep(0.01)
        return process

    def go_on(self, name: str) -> None:
        (self.project.folder / name / "paused").unlink()

    def out(self, name: str) -> dict[str, bytes]:
        folder = self.project.folder / name / "data/toy"
        return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def runs(project: Any, environment: dict[str, str]) -> Iterator[Runs]:
    runs = Runs(project, environment)
    yield runs
    runs.close()


def await_waiting(process: "subprocess.Popen[str]", holder: int) -> None:
    """Until the run says that it waits for that process."""
    assert process.stderr is not None
    assert f"waiting for process {holder}, which makes " in process.stderr.readline()


def test_a_shard_that_two_runs_want_is_computed_once(runs: Runs) -> None:
    first = runs.start("first", paused=True)
    second = runs.start("second")
    await_waiting(second, first.pid)
    runs.go_on("first")
    assert (first.wait(), second.wait()) == (0, 0)
    log = runs.project.log
    assert len(log) == len(set(log)) > 3
    assert runs.out("first") == runs.out("second")
    assert runs.project.run() == 0
    assert runs.project.out == runs.out("first")


def test_shards_of_a_killed_run_are_made_by_the_one_that_waits(runs: Runs) -> None:
    first = runs.start("first", paused=True)
    second = runs.start("second")
    await_waiting(second, first.pid)
    first.send_signal(signal.SIGKILL)
    assert second.wait() == 0
    log = runs.project.log
    assert len(log) == len(set(log)) > 3  # that of the killed one was whole
    assert not runs.out("first")
    runs.project.run()
    assert runs.project.out == runs.out("second")


def test_a_run_that_ends_leaves_the_shards_of_one_at_work_alone(runs: Runs) -> None:
    first = runs.start("first", paused=True)
    (finished,) = runs.project.kept
    second = runs.start("second", scale=2)
    assert second.wait() == 0
    assert finished in runs.project.kept
    runs.go_on("first")
    assert first.wait() == 0
    log = runs.project.log
    assert len(log) == len(set(log))
    runs.project.run()  # alone: what it did not place is deleted
    placed = {path.stat().st_ino for path in Path("data/toy").glob("*.tar")}
    assert {path.stat().st_ino for path in runs.project.kept} == placed


def test_one_folder_is_made_by_one_run(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    first = runs.start("first", paused=True)
    monkeypatch.setenv("DVC_ROOT", str(runs.project.folder))
    monkeypatch.chdir("first")
    with pytest.raises(FvlmError, match="data/toy is being made by another run of toy"):
        runs.project.toy.main()
    first.send_signal(signal.SIGKILL)
    first.wait()
    runs.project.toy.main()
    assert runs.out("first")


APART = ("unshare", "--pid", "--fork", "--kill-child")


@pytest.mark.parametrize("others", [0, 3], ids=["equal numbers", "different numbers"])
def test_containers_on_one_folder_share_the_work(runs: Runs, others: int) -> None:
    """In process namespaces of their own, where numbers of processes mean nothing to each other."""
    if subprocess.run([*APART, "true"], check=False, capture_output=True).returncode:
        pytest.skip("process namespaces cannot be made here")
    before = (*APART, "sh", "-c", "(true); " * others + '"$0" "$@"; exit $?')
    first = runs.start("first", paused=True, within=before)
    second = runs.start("second", within=(*APART, "sh", "-c", '"$0" "$@"; exit $?'))
    assert second.stderr is not None
    assert "waiting for" in second.stderr.readline()
    runs.go_on("first")
    assert (first.wait(), second.wait()) == (0, 0)
    log = runs.project.log
    assert len(log) == len(set(log)) > 3
    assert runs.out("first") == runs.out("second")
    assert not runs.project.leftovers
    assert runs.project.run() == 0
    assert runs.project.out == runs.out("first")
