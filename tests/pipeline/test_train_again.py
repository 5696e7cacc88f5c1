"""A training that was done before is handed back, byte for byte, and never half or damaged."""

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fvlm.training import trainings
from pipeline import train
from tests.pipeline.test_train import RESULTS, ROOT, enter_project, handed_back, start_module
from tests.projects import environment
from tests.tiny import set_params

DVC_YAML = """\
stages:
  train:
    cmd: python -m pipeline.train
    outs: [models/foveated]
"""
FILES = (*RESULTS, "metrics/train.json", "models/foveated/train.csv")
Train = Callable[[], bool]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter_project(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def again(project: Path, capfd: pytest.CaptureFixture[str]) -> Train:
    """again() runs the stage, the output deleted as DVC does: was the model handed back?"""

    def call() -> bool:
        shutil.rmtree(project / "models", ignore_errors=True)
        capfd.readouterr()
        train.main()
        said, progress = capfd.readouterr()
        known = handed_back() in said.splitlines()
        assert known != ("train: 6/6 steps" in progress)
        return known

    return call


def results(folder: Path) -> list[bytes]:
    return [(folder / path).read_bytes() for path in FILES]


def kept() -> list[Path]:
    return sorted(Path(".state/train").glob("*/*.safetensors"))


def test_how_a_training_is_run_does_not_matter(project: Path, again: Train) -> None:
    assert not again()
    first = results(project)
    set_params(project, {"train": {"max_hours": 5.0, "checkpoint_samples": 8, "parallel": "fsdp"}})
    assert again()
    assert results(project) == first


def test_only_the_last_training_keeps_files_and_all_keep_records(
    project: Path, again: Train
) -> None:
    """Without DVC's cache the disk holds the model that is in place once, and no other one."""
    assert not again()
    set_params(project, {"train": {"lr": 0.01}})
    assert not again()
    (weights,) = kept()
    assert weights.samefile(project / RESULTS[1])
    assert len(list(Path(".state/train").glob("*/finished.json"))) == 2
    assert not list(Path(".state/train").glob("*/step-*"))
    set_params(project, {"train": {"lr": 1e-3}})
    assert not again()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "train.csv"])
def test_a_damaged_or_missing_kept_file_has_it_trained_anew(
    project: Path, again: Train, name: str
) -> None:
    assert not again()
    first = results(project)
    (file,) = Path(".state/train").glob(f"*/{name}")
    content = file.read_bytes()
    for damaged in (content[:-1], content[:-20] + b"x" + content[-19:], None):
        (file,) = Path(".state/train").glob(f"*/{name}")
        file.unlink()
        if damaged is not None:
            file.write_bytes(damaged)
        assert not again()
        assert results(project) == first
        assert again()


def test_other_code_trains_anew(again: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not again()
    monkeypatch.setattr(trainings, "made_by", lambda *_: "other")
    assert not again()
    assert again()


def test_dvc_hands_back_what_was_trained_before(project: Path, again: Train) -> None:
    """Also after another training, and without any state; not what is damaged in its cache."""

    def repro() -> bool:
        own = {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "repro", "-f"],
            env=environment() | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return handed_back() in done.stdout.splitlines()

    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
    Path("dvc.yaml").write_text(DVC_YAML)
    assert not repro()
    first = results(project)
    shutil.rmtree(".state/train")
    assert repro()  # as dvc.lock names it
    set_params(project, {"train": {"lr": 0.01}})
    assert not repro()
    second = results(project)
    assert second != first
    for lr, expected in ((1e-3, first), (0.01, second)):
        set_params(project, {"train": {"lr": lr}})
        assert repro()  # dvc.lock names the other one
        assert results(project) == expected
    assert not kept()  # the cache has them
    for content in (second[1], second[4]):  # weights, curve
        shutil.rmtree(".state/train")
        md5 = hashlib.md5(content).hexdigest()
        cached = Path(".dvc/cache/files/md5", md5[:2], md5[2:])
        cached.chmod(0o644)
        cached.write_bytes(content[:-20] + b"1" + content[-19:])
        assert not again()
        assert results(project) == second
        cached.write_bytes(content)
    shutil.rmtree(".state/train")
    assert again()


def test_a_training_that_another_process_does_is_waited_for(project: Path) -> None:
    """Two experiments want it: one trains, the other is handed what that one made."""
    set_params(project, {"train": {"max_samples": 400}})
    other = project / "other"
    other.mkdir()
    for name in ("params.yaml", "data", "weights"):
        source = project / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, other / name)
    with start_module(project, "pipeline.train") as first:
        while not list(project.glob(".state/train/*/step-*")):
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        with start_module(other, "pipeline.train", DVC_ROOT=str(project)) as second:
            assert second.stderr is not None
            line = second.stderr.readline()
            first.send_signal(signal.SIGCONT)
            progress = first.communicate()[1] + second.communicate()[1]
    assert line == f"waiting for process {first.pid}, which makes the same training (train)\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert progress.count("train: 50/50 steps") == 1
    assert results(other) == results(project)
