"""Every benchmark starts as `make bench` starts it, from a checkout that is on no path."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = sorted(f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("bench_*.py"))
HELP = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv[1:] = ["--help"]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as leave:
        assert not leave.code, name
    else:
        raise AssertionError(f"{name} knows no --help")
"""


def test_the_recipe_runs_every_benchmark_as_a_module(tmp_path: Path) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\necho "python $*"\n')
    stand_in.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    said = subprocess.run(
        ["make", "-s", "-o", ".venv/installed-dev", "bench", f"PATH={path}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert said.splitlines() == [
        line for name in NAMES for line in (f"== {name}", f"python -m {name}")
    ]


def test_every_benchmark_explains_itself() -> None:
    """In one process, since all import torch."""
    without_options = {"benchmarks.bench_text"}
    names = [name for name in NAMES if name not in without_options]
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", HELP, *names]
    done = subprocess.run(
        command, cwd=ROOT, env=settings, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(names)
