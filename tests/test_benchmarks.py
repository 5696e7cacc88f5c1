"""Every benchmark starts as `make bench` starts it, from a checkout that is on no path."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = sorted(f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("bench_*.py"))
WITHOUT_OPTIONS = {"benchmarks.bench_cuts", "benchmarks.bench_text"}
HELP = """
import runpy, sys
for name in sys.argv[1:]:
    print(f"== {name}")
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


def docstring(name: str) -> str:
    """What the file says of itself, without breaks."""
    tree = ast.parse((ROOT / f"{name.replace('.', '/')}.py").read_text())
    return " ".join((ast.get_docstring(tree) or "").split())


def test_every_benchmark_says_in_its_file_what_it_measures() -> None:
    for name in NAMES:
        said = docstring(name)
        assert len(said.split()) >= 10, name
        assert name in said or name not in WITHOUT_OPTIONS, f"{name} has no --help, so say its use"


def test_every_benchmark_with_options_explains_itself() -> None:
    """`--help` prints what the file says. In one process, since all import torch."""
    names = [name for name in NAMES if name not in WITHOUT_OPTIONS]
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", HELP, *names]
    done = subprocess.run(
        command, cwd=ROOT, env=settings, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = [" ".join(page.split()) for page in done.stdout.split("== ")[1:]]
    assert [page.split()[0] for page in pages] == names
    for name, page in zip(names, pages, strict=True):
        assert "usage: " in page
        # As far as its first full stop: argparse fills lines anew, and breaks words at hyphens.
        first = docstring(name).split(". ")[0].replace(" ", "")
        assert first in page.replace(" ", ""), name
