"""`uncertainty/dvc.yaml` is code and stands beside the main pipeline: neither runs the other."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import uncertainty

ROOT = Path(__file__).parents[2]
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "uncertainty/dvc.yaml").read_text())["stages"]
MAIN: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
(STAGE,) = STAGES.values()
MODULE = Path("pipeline/uncertainty.py")


def first_party(path: Path) -> set[Path]:
    """First-party files that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = {Path(*name.split(".")).with_suffix(".py") for name in names}
    return {file for file in files if (ROOT / file).is_file()}


def test_dependencies_are_the_imports() -> None:
    seen: set[Path] = set()
    waiting = {MODULE}
    while waiting:
        file = waiting.pop()
        seen.add(file)
        waiting |= first_party(file) - seen
    assert {dep for dep in STAGE["deps"] if dep.endswith(".py")} == set(map(str, seen))


def test_parameters_command_and_folder() -> None:
    assert list(STAGES) == ["uncertainty"]
    assert STAGE["params"] == list(uncertainty.Sections.model_fields)
    assert STAGE["cmd"] == "python -m pipeline.uncertainty"
    assert STAGE["wdir"] == ".."  # paths, parameters and modules are those of the repository


def test_paths_are_the_constants_of_the_stage() -> None:
    constants = {str(value) for value in vars(uncertainty).values() if isinstance(value, Path)}
    data = {dep for dep in STAGE["deps"] if not dep.endswith(".py")}
    outs = [out for kind in ("outs", "metrics", "plots") for out in STAGE[kind]]
    assert constants == data | {name for out in outs for name in out}
    assert all(options["cache"] is False for out in outs for options in out.values())


def test_the_main_pipeline_knows_nothing_of_it() -> None:
    for stage in MAIN.values():
        assert "uncertainty" not in stage["params"]
        assert not [dep for dep in stage["deps"] if "uncertainty" in dep]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's pipelines, parameters and code under DVC, with outputs of no meaning."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("fvlm", "pipeline", "uncertainty"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "assets/vae", tmp_path / "assets/vae")
    (tmp_path / "uncertainty/dvc.lock").unlink(missing_ok=True)
    for stage in (*MAIN.values(), STAGE):
        for out in (
            entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])
        ):
            if isinstance(out, str):
                (tmp_path / out).mkdir(parents=True, exist_ok=True)
                continue
            path = tmp_path / next(iter(out))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.chdir(tmp_path)
    dvc("init", "--no-scm", "-q")
    return tmp_path


def dvc(*arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def planned(*targets: str) -> set[str]:
    """Stages that `dvc repro` would run."""
    printed = dvc("repro", "--dry", *targets)
    return {stage for stage in (*MAIN, *STAGES) if f"python -m pipeline.{stage}" in printed}


def test_each_pipeline_runs_its_own_stages_and_reads_its_own_parameters(clone: Path) -> None:
    assert planned() == set(MAIN)
    assert planned("uncertainty/dvc.yaml") == {"collect", "filter", "decode", "uncertainty"}
    # Record everything as it is; then only `collect` is looked at again.
    dvc("commit", "-q", "-f", *MAIN, "uncertainty/dvc.yaml")
    assert planned("uncertainty/dvc.yaml") == {"collect"}
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("  p: 0.1  ", "  p: 0.2  "))
    assert planned() == {"collect"}
    assert planned("uncertainty/dvc.yaml") == {"collect", "uncertainty"}
