"""What a worker that is hijacked by a video cannot do, seen from inside one."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fvlm.video import sandbox
from fvlm.video.confine import landlock_abi
from fvlm.video.worker import Outcome, map_isolated
from tests.projects import ROOT, output_of


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_what_a_hijacked_worker_cannot_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if landlock_abi() < 4:
        pytest.skip("this kernel has no Landlock of ABI 4 or newer")
    monkeypatch.setattr("fvlm.video.worker._announced", set())
    video, other = tmp_path / "a.mp4", tmp_path / "b.mp4"
    for path in (video, other):
        path.write_bytes(b"video")
    with socket.create_server(("127.0.0.1", 0)) as server:
        items = [{"path": str(video), "other": str(other), "port": server.getsockname()[1]}] * 2
        outcomes = [
            outcome for _, outcome in map_isolated("worker_functions:pry", items, workers=2)
        ]
    for outcome in outcomes:
        assert isinstance(outcome, Outcome)
        allowed = {deed for deed, error in outcome.values.items() if error == "done"}
        assert allowed == {"read the file that it was given", "read a library"}
        assert set(outcome.values.values()) == {"done", "PermissionError"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    assert other.read_bytes() == b"video"
    said = capfd.readouterr().err
    assert said.count("videos are opened in processes confined by Landlock (ABI ") == 1


def test_systems_without_calls_of_linux_keep_the_other_limits() -> None:
    code = (
        "import ctypes, os, resource, sys\n"
        "sys.platform = 'darwin'\n"
        "ctypes.CDLL = lambda *_, **__: object()\n"
        "from fvlm.video import confine, sandbox\n"
        "sandbox._die_with_parent(os.getppid())\n"
        "sandbox._limit(2**20)\n"  # too little to live on
        "print(confine.confine(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    said = output_of([sys.executable, "-c", code], ROOT, imports=ROOT)
    assert said == f"limits of time, file size and open files {sandbox.OPEN_FILES}\n"


@pytest.mark.parametrize("has_landlock", [True, False])
def test_what_holds_without_landlock(monkeypatch: pytest.MonkeyPatch, has_landlock: bool) -> None:
    """The filter of system calls stands alone; what is in force is said as it is."""
    code = (
        "import os, socket, subprocess\n"
        "from fvlm.video import confine\n"
        f"if not {has_landlock}: confine.landlock_abi = lambda: 0\n"
        "print(confine.confine())\n"
        "for act in (socket.socket, lambda: subprocess.run(['/bin/true'])):\n"
        "    try: act()\n"
        "    except PermissionError: print('refused')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    protection, *refused = done.stdout.splitlines()
    assert protection.startswith("Landlock") == (has_landlock and landlock_abi() > 0)
    assert protection.endswith("limits of memory, time, file size and open files")
    if "seccomp" not in protection:
        pytest.skip("this machine has no seccomp filter")
    assert refused == ["refused"] * 2
