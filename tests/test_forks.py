"""The `python` of tests/forks.py runs what Python would: here, with these files, to one end."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.projects import environment, forks, output_of
from tests.tracking.conftest import wait_for

STAGE = """
import json, os, sys
import pipeline.beside
loaded = [name for name in ("torch", "fvlm.core.io") if name in sys.modules]
print(json.dumps([__name__, sys.argv[1:], os.getcwd(), loaded, os.environ["OWN"]]))
print("to stderr", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""
SLOW = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
KILLED = "import os; os.kill(os.getpid(), 15)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with stages of its own."""
    (tmp_path / "pipeline").mkdir()
    files = {"__init__": "", "beside": "", "stage": STAGE, "slow": SLOW, "killed": KILLED}
    for name, text in files.items():
        (tmp_path / f"pipeline/{name}.py").write_text(text)
    return tmp_path


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [str(forks().bin / "python"), *arguments]
    pipe, own = subprocess.PIPE, environment() | {"OWN": "ä"}
    return subprocess.Popen(command, cwd=folder, env=own, stdout=pipe, stderr=pipe, text=True)


def test_a_stage_of_the_folder_runs_with_libraries_and_none_of_our_code(folder: Path) -> None:
    with start(folder, "-m", "pipeline.stage", "3", "two words") as process:
        out, err = process.communicate()
    seen = f'["__main__", ["3", "two words"], "{folder}", ["torch"], "\\u00e4"]\n'
    assert (process.returncode, out, err) == (3, seen, "to stderr\n")


def test_it_ends_as_its_fork_does_and_takes_it_along(folder: Path) -> None:
    with start(folder, "-m", "pipeline.killed") as process:
        process.communicate()
    assert process.returncode == -signal.SIGTERM
    with start(folder, "-m", "pipeline.nothing") as process:
        assert "No module named pipeline.nothing" in process.communicate()[1]
    assert process.returncode == 1
    with start(folder, "-m", "pipeline.slow") as process:
        assert process.stdout is not None
        fork = Path("/proc", process.stdout.readline().strip())
        assert fork.exists()
        process.kill()
    wait_for(lambda: not fork.exists())


def test_all_else_is_run_by_python_itself(folder: Path) -> None:
    code = "import sys; print('torch' in sys.modules, sys.argv)"
    assert output_of(["python", "-c", code, "a b"], folder) == "False ['-c', 'a b']\n"
