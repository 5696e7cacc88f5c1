"""`dvc.yaml` is code: its dependencies, parameters and paths are those of the stages' modules."""

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvlm.params import Params

ROOT = Path(__file__).parents[1]
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def module_file(name: str) -> Path | None:
    """The file of a first-party module, relative to the repository."""
    stem = Path(*name.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if (ROOT / path).is_file():
            return path
    return None


def imports_of(path: Path) -> set[Path]:
    """First-party files that this file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Entry points of worker and child processes are named by text.
            names = [node.value.split(":")[0]] if node.value.startswith("fvlm.") else []
        found |= {file for name in names if (file := module_file(name))}
    return found


def transitive_imports(path: Path) -> set[str]:
    seen: set[Path] = set()
    waiting = {path}
    while waiting:
        file = waiting.pop()
        seen.add(file)
        waiting |= imports_of(file) - seen
    return {str(file) for file in seen if (ROOT / file).stat().st_size}


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_are_the_imports(stage: str) -> None:
    declared = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert declared == transitive_imports(Path(f"pipeline/{stage}.py"))


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_the_sections_that_the_stage_loads(stage: str) -> None:
    sections: type[Params] = importlib.import_module(f"pipeline.{stage}").Sections
    assert STAGES[stage]["params"] == list(sections.model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_paths_are_the_constants_of_the_stage(stage: str) -> None:
    """Every data path that is declared is a constant of the module, and the other way round."""
    module = importlib.import_module(f"pipeline.{stage}")
    constants = {str(value) for value in vars(module).values() if isinstance(value, Path)}
    entry = STAGES[stage]
    code = ("fvlm/", "pipeline/", "assets/")
    data = {dep for dep in entry["deps"] if not dep.startswith(code)}
    outs = [
        next(iter(out)) if isinstance(out, dict) else out
        for kind in ("outs", "metrics", "plots")
        for out in entry.get(kind, [])
    ]
    declared = data | set(outs)
    covered = {c for c in constants if any(Path(c).is_relative_to(d) for d in declared)}
    assert constants == covered
    assert {d for d in declared if not any(Path(c).is_relative_to(d) for c in constants)} == set()


@pytest.mark.parametrize("stage", STAGES)
def test_command_runs_the_module_of_the_working_directory(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"python -m pipeline.{stage}"


def test_metrics_and_plots_stay_in_git() -> None:
    for entry in STAGES.values():
        for kind in ("metrics", "plots"):
            for out in entry.get(kind, []):
                assert next(iter(out.values()))["cache"] is False
