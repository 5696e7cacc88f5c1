"""`dvc.yaml` is code: its dependencies, parameters and paths are those of the stages' modules."""

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvlm.core.params import Params
from pipeline import paths
from tests.imports import MODULES, ROOT, parsed, reachable

FILES = ("dvc.yaml", "uncertainty/dvc.yaml")
STAGES: dict[str, dict[str, Any]] = {
    name: entry
    for file in FILES
    for name, entry in yaml.safe_load((ROOT / file).read_text())["stages"].items()
}
CODE = ("fvlm/", "pipeline/", "assets/")


def folder_of(module: str) -> str:
    """What dvc.yaml names for a module: its folder, or the file itself of a stage."""
    path = MODULES[module].relative_to(ROOT)
    return str(path.parent if path.parts[0] == "fvlm" else path)


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_are_the_folders_of_the_imports(stage: str) -> None:
    declared = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("fvlm/", "pipeline/"))}
    used = reachable(f"pipeline.{stage}", deep=True) & set(MODULES)
    assert declared == {folder_of(module) for module in used}


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_the_sections_that_the_stage_loads(stage: str) -> None:
    sections: type[Params] = importlib.import_module(f"pipeline.{stage}").Sections
    assert STAGES[stage]["params"] == list(sections.model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_paths_are_those_that_the_stage_imports(stage: str) -> None:
    """Every artefact that is declared is used by the stage, and the other way round."""
    tree = parsed(MODULES[f"pipeline.{stage}"])
    used = {
        str(getattr(paths, alias.name))
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "pipeline.paths"
        for alias in node.names
    }
    entry = STAGES[stage]
    outs = [
        next(iter(out)) if isinstance(out, dict) else out
        for kind in ("outs", "metrics", "plots")
        for out in entry.get(kind, [])
    ]
    declared = {dep for dep in entry["deps"] if not dep.startswith(CODE)} | set(outs)
    inside = {(use, name) for use in used for name in declared if Path(use).is_relative_to(name)}
    assert {use for use, _ in inside} == used
    assert {name for _, name in inside} == declared


@pytest.mark.parametrize("stage", STAGES)
def test_command_runs_the_module_of_the_working_directory(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"python -m pipeline.{stage}"


def test_metrics_and_plots_stay_in_git() -> None:
    for entry in STAGES.values():
        for kind in ("metrics", "plots"):
            for out in entry.get(kind, []):
                assert next(iter(out.values()))["cache"] is False
