"""`uncertainty/dvc.yaml` and `answers/dvc.yaml` stand beside the main one, which runs none."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

ROOT = Path(__file__).parents[2]
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "uncertainty/dvc.yaml").read_text())["stages"]
MAIN: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
(STAGE,) = STAGES.values()
ANSWERS: dict[str, Any] = yaml.safe_load((ROOT / "answers/dvc.yaml").read_text())["stages"]
STATUS = ("--with-deps", "report")


def test_folder() -> None:
    assert list(STAGES) == ["uncertainty"]
    assert list(ANSWERS) == ["instruct", "prefer", "quiz"]
    for stage in (STAGE, *ANSWERS.values()):
        assert stage["wdir"] == ".."  # paths, parameters and modules are those of the repository


def test_the_main_pipeline_knows_nothing_of_it() -> None:
    made = {out if isinstance(out, str) else next(iter(out))
            for stage in ANSWERS.values() for out in stage["outs"]}  # fmt: skip
    for stage in MAIN.values():
        assert not {"uncertainty", *ANSWERS} & set(stage["params"])
        assert not [dep for dep in stage["deps"] if "uncertainty" in dep]
        assert not made & set(stage["deps"])


def test_plots_of_the_main_pipeline_are_not_mixed_with_its_pictures(clone: Path) -> None:
    """`dvc plots` gathers what all pipelines of a repository declare as plots."""
    with Repo(str(clone)) as repo:
        shown = [out.fs_path for out in repo.index.plots]
        assert len(shown) == 3
        assert not [path for path in shown if "uncertainty" in path]
        assert list(repo.index._plots) == [str(clone / "dvc.yaml")]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's pipelines, parameters and code under DVC, with outputs of no meaning."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("fvlm", "pipeline", "answers", "uncertainty"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "assets/vae", tmp_path / "assets/vae")
    for name in ("answers", "uncertainty"):
        (tmp_path / name / "dvc.lock").unlink(missing_ok=True)
    for stage in (*MAIN.values(), *ANSWERS.values(), STAGE):
        for out in (
            entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])
        ):
            path = tmp_path / (out if isinstance(out, str) else next(iter(out)))
            if not path.suffix:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    # Weights are named file by file, their folder is the out.
    for stage in (*MAIN.values(), *ANSWERS.values(), STAGE):
        for dep in stage["deps"]:
            if dep.startswith("data/weights/"):
                (tmp_path / dep).write_text("{}")
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
    return {
        stage for stage in (*MAIN, *ANSWERS, *STAGES) if f"python -m pipeline.{stage}" in printed
    }


def changed(*arguments: str) -> set[str]:
    """Stages that `dvc status` lists; `collect` always, since it looks at the source each time."""
    found: dict[str, Any] = json.loads(dvc("status", "--json", *arguments))
    return set(found)


def test_make_status_shows_the_main_pipeline_alone() -> None:
    said = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/installed", "status"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert said.splitlines() == [" ".join(["dvc", "status", *STATUS])]


def test_each_pipeline_runs_its_own_stages_and_reads_its_own_parameters(clone: Path) -> None:
    assert planned() == set(MAIN)
    assert planned("uncertainty/dvc.yaml") == {"collect", "filter", "decode", "uncertainty"}
    # Record everything as it is; then only `collect` is looked at again.
    assert planned("answers/dvc.yaml") == {*MAIN, *ANSWERS} - {"evaluate", "report"}
    dvc("commit", "-q", "-f", *MAIN, "answers/dvc.yaml", "uncertainty/dvc.yaml")
    assert planned("answers/dvc.yaml") == {"collect"}
    assert planned("uncertainty/dvc.yaml") == {"collect"}
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(text.replace("  p: 0.1  ", "  p: 0.2  "))
    assert planned() == {"collect"}
    assert planned("uncertainty/dvc.yaml") == {"collect", "uncertainty"}
    # `dvc status` alone shows all pipelines; with the last stage as target only the main one.
    assert changed() == {"collect", "uncertainty/dvc.yaml:uncertainty"}
    assert changed(*STATUS) == {"collect"}
    (clone / "params.yaml").write_text(text.replace("  beta: 0.1  ", "  beta: 0.2  "))
    assert planned() == {"collect"}
    assert planned("answers/dvc.yaml") == {"collect", "prefer"}
    (clone / "params.yaml").write_text(text.replace("  lr: 1.0e-3", "  lr: 1.0e-4"))
    assert changed(*STATUS) == {"collect", "train", "report"}
