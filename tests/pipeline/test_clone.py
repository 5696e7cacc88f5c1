"""A clone with what `dvc pull` brings, but no videos: the real dvc.yaml, stages of no meaning."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fvlm.core.params import PARAMS
from tests.pipeline.test_repro import ran
from tests.projects import ROOT, environment
from tests.test_dvc_yaml import outs_of
from tests.tiny import set_params

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NEED_VIDEOS = ("collect", "filter", "decode")
CHANGED = ["train", "evaluate", "report"]


def call(folder: Path, *command: str, code: int = 0) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment(), text=True, check=False, capture_output=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def script_of(stage: str) -> str:
    """Copies the parameters to all outputs, when the videos that the stage needs are there."""
    lines = ["test -d videos || exit 1"] if stage in NEED_VIDEOS else []
    for out in outs_of(STAGES[stage]):
        names = ("dino", "vae", "language", "start") if out == "data/weights" else ("",)
        paths = [f"{out}/{name}.json" if name else out for name in names]
        lines += [
            f"rm -rf {path}; mkdir -p $(dirname {path}); cp {PARAMS} {path}" for path in paths
        ]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose results are committed and pushed."""
    root = tmp_path_factory.mktemp("origin")
    text = re.sub(r"python -m pipeline\.(\w+)", r"sh \1.sh", (ROOT / "dvc.yaml").read_text())
    (root / "dvc.yaml").write_text(text)
    shutil.copy(ROOT / PARAMS, root)
    (root / "videos").mkdir()
    (root / ".gitignore").write_text("/videos/\n/data/\n/models/\n/reports/\n")
    for stage, entry in STAGES.items():
        (root / f"{stage}.sh").write_text(script_of(stage))
        for dep in entry["deps"]:
            if dep.startswith(("fvlm/", "pipeline/")):
                (root / dep).parent.mkdir(parents=True, exist_ok=True)
                (root / dep).write_text(dep)
    dvc = [sys.executable, "-m", "dvc"]
    call(root, "git", "init", "-q")
    call(root, *dvc, "init", "-q")
    call(root, *dvc, "remote", "add", "-q", "-d", "store", str(root.with_name("remote")))
    call(root, *dvc, "repro", "-q")
    call(root, *dvc, "push", "-q")
    call(root, "git", "add", "-A")
    call(root, "git", "commit", "-q", "-m", "results")
    return root


@pytest.fixture
def clone(origin: Path, tmp_path: Path) -> Path:
    call(tmp_path, "git", "clone", "-q", str(origin), "clone")
    set_params(tmp_path / "clone", {"train": {"lr": 0.002}})
    return tmp_path / "clone"


def listing(project: Path) -> str:
    return (project / "data/collect").read_text()


def test_stages_behind_the_videos_run_with_what_was_pulled(origin: Path, clone: Path) -> None:
    dvc = [sys.executable, "-m", "dvc"]
    call(clone, *dvc, "pull", "-q")
    call(clone, *dvc, "repro", "--pull", "--allow-missing", code=255)  # there is nothing to list
    assert listing(clone) == listing(origin)
    assert ran(call(clone, *dvc, "repro", "--downstream", "encode")) == CHANGED
    assert listing(clone) == listing(origin)


@pytest.mark.slow
def test_a_frozen_listing_lets_a_plain_repro_run(clone: Path) -> None:
    dvc = [sys.executable, "-m", "dvc"]
    call(clone, *dvc, "freeze", *NEED_VIDEOS)
    assert ran(call(clone, *dvc, "repro", "--pull", "--allow-missing")) == CHANGED
    assert ran(call(clone, *dvc, "repro", "--allow-missing")) == []
