"""Killed at any moment, at most the shard in work is lost, and the rerun gives the same bytes."""

import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fvlm.core.errors import FvlmError

STAGE = Path(__file__).with_name("toy_stage.py")


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faults", STAGE.with_name("faults.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_child(action: Callable[[], None]) -> int:
    """Run in a forked process; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        action()
    except BaseException:
        os._exit(1)
    os._exit(0)


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start_over(project: Any) -> None:
    for name in ("data", ".state"):
        shutil.rmtree(project.folder / name, ignore_errors=True)
    (project.folder / "computed.log").unlink(missing_ok=True)


def check_after_fault(project: Any, reference: dict[str, bytes], shards: int) -> None:
    """What a reader may see at once, and what the next run makes of it."""
    assert project.out in ({}, reference)
    project.run()
    assert project.out == reference
    assert not project.leftovers
    assert len(project.log) <= shards + 1  # at most the shard in work was begun twice


def count_operations(project: Any, faults: ModuleType) -> dict[str, int]:
    """Operations of an undisturbed run, by kind."""
    reader, writer = os.pipe()

    def action() -> None:
        counter = faults.Faults()
        counter.install()
        project.toy.main()
        os.write(writer, json.dumps(counter.counts).encode())

    assert exit_code(in_child(action)) == 0
    counts: dict[str, int] = json.loads(os.read(reader, 4096))
    os.close(reader)
    os.close(writer)
    return counts


@pytest.mark.parametrize("kind", ["open", "write", "fsync", "rename", "link", "remove"])
@pytest.mark.parametrize("kill", [True, False], ids=["kill", "error"])
@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fault_at_operations_of_every_kind(
    project: Any, faults: ModuleType, kind: str, kill: bool, all_of_them: bool
) -> None:
    """Each of the rare ones, and of others every seventh, which hits all places of a shard."""
    shards = project.run()
    reference = project.out
    start_over(project)
    total = count_operations(project, faults)[kind]
    assert total > 0
    for at in range(1, total + 1, 1 if total < 60 or all_of_them else 7):
        start_over(project)

        def action(at: int = at) -> None:
            faults.Faults(kind, at, kill=kill).install()
            project.toy.main()

        code = exit_code(in_child(action))
        # Failing to link or to delete need not be fatal: there is the copy, and the next run.
        assert code == -signal.SIGKILL if kill else code in (0, 1)
        check_after_fault(project, reference, shards)


def kill_at_random(project: Any, times: int, seed: int) -> None:
    shards = project.run()
    reference = project.out
    rng = random.Random(seed)
    start = time.monotonic()
    start_over(project)
    exit_code(in_child(project.toy.main))
    seconds = time.monotonic() - start
    for _ in range(times):
        start_over(project)
        pid = in_child(project.toy.main)
        time.sleep(rng.uniform(0, 1.2 * seconds))
        os.kill(pid, signal.SIGKILL)
        exit_code(pid)
        check_after_fault(project, reference, shards)


def test_25_kills_at_random_times(project: Any) -> None:
    kill_at_random(project, 25, seed=0)


@pytest.mark.slow
def test_300_kills_at_random_times(project: Any) -> None:
    kill_at_random(project, 300, seed=1)


def test_many_kills_in_a_row_still_make_progress(project: Any) -> None:
    shards = project.run()
    reference = project.out
    start_over(project)
    for number in range(100):
        pid = in_child(project.toy.main)
        time.sleep(0.004 * number)  # a busy machine gets to its first shard late
        os.kill(pid, signal.SIGKILL)
        if exit_code(pid) == 0:
            break
    project.run()
    assert project.out == reference
    assert len(set(project.log)) == shards <= len(project.log) < 100 + shards


def test_file_size_limit_is_a_clear_error_and_completes_later(project: Any) -> None:
    project.run()
    reference = project.out
    start_over(project)
    messages = Path("messages.txt")

    def action() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        try:
            project.toy.main()
        except FvlmError as error:
            messages.write_text(str(error)[:4000])

    exit_code(in_child(action))
    assert "no room for stage toy" in messages.read_text()
    assert "run again" in messages.read_text()
    assert not project.out
    project.run()
    assert project.out == reference
    assert not project.leftovers


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("kilobytes", [4, 24, 60])
def test_full_disk_is_a_clear_error_and_completes_later(project: Any, kilobytes: int) -> None:
    project.run()
    reference = project.out
    start_over(project)
    state = project.folder / ".state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(state)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount")
    try:
        with pytest.raises(FvlmError, match="no room for stage toy"):
            project.run()
        assert not project.out
        subprocess.run(["mount", "-o", "remount,size=8m", str(state)], check=True)
        project.run()
        assert project.out == reference
        assert not project.kept  # another file system: no hard links, so nothing is kept
    finally:
        subprocess.run(["umount", str(state)], check=True)
