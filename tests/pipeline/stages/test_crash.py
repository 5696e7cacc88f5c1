"""The real decode and encode stages: killed at any moment, a rerun gives the same bytes.

What was finished is not made again: of the shards on disk, at most those that were made last.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.machine import core_count
from fvlm.encoders.shards import SIDE_BY_SIDE

STAGES = ("decode", "encode")
KINDS = ("open", "write", "fsync", "rename", "link", "remove")

Files = dict[str, bytes]
Launch = Callable[[str], Any]


class Trials:
    """One stage in one project: the result of an undisturbed run, and runs that are disturbed."""

    def __init__(self, launcher: Any, project: Path) -> None:
        self.launcher, self.folder = launcher, project
        if launcher.stage == "encode":
            self._decode(project)
        assert self.run() == 0, self.said  # warms up: caches of the file system, lazy imports
        self.start_over()
        begin = time.monotonic()
        launcher.start(project)
        code, self.operations = launcher.finish()
        assert code == 0, self.said
        self.seconds = time.monotonic() - begin
        self.expected = self.output, self.metrics
        self.clips = {name: _clips(record) for name, record in self.records.items()}
        self.kept_clips: list[int] = []  # after every disturbed run
        assert self.output
        assert len(self.shards) > 2

    @staticmethod
    def _decode(project: Path) -> None:
        from pipeline import decode

        decode.main()
        shutil.rmtree(project / ".state")

    @property
    def output(self) -> Files:
        return {
            path.name: path.read_bytes() for path in (self.folder / self.launcher.out).glob("*")
        }

    @property
    def metrics(self) -> dict[str, Any]:
        path = self.folder / self.launcher.metrics
        return json.loads(path.read_bytes()) if path.exists() else {}

    @property
    def records(self) -> dict[str, Any]:
        """What is remembered of finished shards, by fingerprint."""
        return {path.stem: json.loads(path.read_bytes()) for path in self._state.glob("*.json")}

    @property
    def shards(self) -> set[str]:
        """Fingerprints of the shards that are whole on the disk."""
        return {path.stem for path in self._state.glob("*.tar")}

    @property
    def _state(self) -> Path:
        return self.folder / ".state" / "shards" / str(self.launcher.stage)

    @property
    def said(self) -> str:
        return str(self.launcher.said)

    def run(self, **order: Any) -> int:
        return int(self.launcher.run(self.folder, **order))

    @property
    def reused(self) -> int:
        """Clips that the last run took from earlier ones."""
        timings = self.folder / ".state/timings" / f"{self.launcher.stage}.json"
        return int(json.loads(timings.read_bytes())["reused"])

    def start_over(self) -> None:
        """As before the first run."""
        for path in (self.folder / ".state", self.folder / self.launcher.out):
            shutil.rmtree(path, ignore_errors=True)
        (self.folder / self.launcher.metrics).unlink(missing_ok=True)

    def check(self) -> None:
        """What is in place at once, and after the next run."""
        assert self.output in ({}, self.expected[0])
        assert self.metrics in ({}, self.expected[1])
        whole, records = self.shards, self.records
        kept = {name for name in records if name in whole or not records[name]["facts"]}
        # Killed between a shard and its record; so many are made at a time.
        assert len(whole - kept) <= max(core_count(), SIDE_BY_SIDE)
        self.kept_clips.append(sum(self.clips[name] for name in kept))
        assert self.run() == 0, self.said
        assert self.reused == self.kept_clips[-1]
        assert (self.output, self.metrics) == self.expected
        assert not list(self.folder.rglob("*.tmp"))

    def kill_after(self, seconds: float, **order: Any) -> bool:
        """Whether the run was still at work then."""
        self.start_over()
        pid = self.launcher.start(self.folder, **order)
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        code, _ = self.launcher.finish()
        self.check()
        return bool(code == -signal.SIGKILL)

    def kill_at(self, kind: str, at: int) -> None:
        self.start_over()
        assert self.run(kind=kind, at=at) == -signal.SIGKILL
        self.check()

    def fail_at(self, kind: str, at: int) -> None:
        """The operation fails with EIO: an error, unless the stage can do without it."""
        self.start_over()
        if self.run(kind=kind, at=at, kill=False) == 0:
            assert (self.output, self.metrics) == self.expected
        else:
            assert "injected fault" in self.said
        self.check()

    def places(self) -> Iterator[tuple[str, int]]:
        """Every operation of an undisturbed run."""
        return ((kind, at + 1) for kind in KINDS for at in range(self.operations[kind]))


def _clips(record: dict[str, Any]) -> int:
    return len(record["notes"]) + (record["facts"]["samples"] if record["facts"] else 0)


@pytest.fixture(params=STAGES)
def trials(request: pytest.FixtureRequest, launcher: Launch, project: Path) -> Trials:
    return Trials(launcher(request.param), project)


def kill(trials: Trials, *, times: int, seed: int) -> None:
    """Half of the kills at random moments, half at random operations of every kind."""
    rng = random.Random(seed)
    places = list(trials.places())
    rng.shuffle(places)
    between = ("rename", trials.operations["rename"] // 2)  # some shards are finished, not all
    at_places = [between, *places[: times // 2 - 1]]
    for kind, at in at_places:
        trials.kill_at(kind, at)
    missing = times - len(at_places)
    while missing:
        missing -= trials.kill_after(rng.uniform(0, trials.seconds), spawn=missing == 1)
    assert any(0 < kept < sum(trials.clips.values()) for kept in trials.kept_clips)


def test_10_kills(trials: Trials) -> None:
    kill(trials, times=10, seed=0)


@pytest.mark.slow
def test_300_kills(trials: Trials) -> None:
    kill(trials, times=300, seed=1)


@pytest.mark.slow
def test_kill_and_failure_at_every_operation(trials: Trials) -> None:
    for kind, at in trials.places():
        trials.kill_at(kind, at)
        trials.fail_at(kind, at)


def test_some_failing_operations(trials: Trials) -> None:
    rng = random.Random(2)
    for kind in KINDS:
        trials.fail_at(kind, rng.randint(1, trials.operations[kind]))
