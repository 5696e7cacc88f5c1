"""A finished training goes on when it is to be longer, or starts from another model's weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fvlm.cli import forget
from fvlm.core.errors import CheckpointError
from fvlm.core.io import read_json
from fvlm.model.saved import load_model
from pipeline import paths, train
from tests.pipeline.test_train import (
    CLIPS,
    RESULTS,
    TORCHRUN,
    enter_project,
    handed_back,
    run_module,
    write_shards,
)
from tests.tiny import set_params

Capture = pytest.CaptureFixture[str]
LONGER = "train: goes on where the training of 8 steps ended"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter_project(tmp_path, monkeypatch)
    monkeypatch.setattr("fvlm.model.film_head.FILM_HIDDEN", 8)  # the time goes into saving it
    set_params(tmp_path, {"model": {"head_channels": 16}})
    choose(schedule="constant", gradient_accumulation_steps=1, checkpoint_samples=1000)
    choose(warmup_samples=4)
    return tmp_path


def choose(**values: Any) -> None:
    set_params(Path(), {"train": values})


def train_for(steps: int) -> None:
    choose(max_samples=4 * steps)
    train.main()


def outcome() -> dict[str, bytes]:
    """Model, curves, figures, and the state that a longer training goes on from."""
    (state,) = Path(".state/train").glob("*/step-*")
    files = [Path(name) for name in (*RESULTS, "metrics/train.json", "models/foveated/train.csv")]
    return {path.name: path.read_bytes() for path in (*files, *state.iterdir())}


def states() -> list[str]:
    return sorted(path.name for path in Path(".state/train").glob("*/step-*"))


def start_anew() -> None:
    for folder in (".state/train", "models"):
        shutil.rmtree(folder)


@pytest.mark.usefixtures("project")
def test_longer_equals_as_long_at_once(capfd: Capture) -> None:
    """To the byte: weights, moments, curve; also where both halves are stopped and resumed."""
    train_for(16)
    expected = outcome()
    assert "step-00000016" in states()
    start_anew()
    capfd.readouterr()
    for steps in (8, 16):
        choose(max_hours=1e-9)
        with pytest.raises(SystemExit, match="75"):
            train_for(steps)
        choose(max_hours=1.0)
        train_for(steps)
    said, progress = capfd.readouterr()
    assert said.splitlines().count(LONGER) == 1
    assert "stopped after step 9 of 16" in progress
    assert outcome() == expected


@pytest.mark.usefixtures("project")
def test_other_data_is_another_training_and_only_the_last_state_stays(
    capfd: Capture, project: Path
) -> None:
    train_for(8)
    write_shards(project, clips=CLIPS - 1)
    capfd.readouterr()
    train_for(9)
    said, progress = capfd.readouterr()
    assert "goes on" not in said
    assert "train: 9/9 steps" in progress
    assert states() == ["step-00000009"]
    write_shards(project)
    train_for(10)
    told = (
        "train: starts at step 0: 8 of its steps were trained before, but their state is not kept"
    )
    assert told in capfd.readouterr().out
    assert states() == ["step-00000010"]


@pytest.mark.usefixtures("project")
def test_a_cosine_says_why_it_does_not_go_on(capfd: Capture) -> None:
    choose(schedule="cosine")
    train_for(8)
    assert states() == []
    assert "step 0" not in capfd.readouterr().out
    train_for(9)
    said, progress = capfd.readouterr()
    assert "train: starts at step 0: the cosine of the 8 steps that were trained before" in said
    assert "train.schedule: constant goes on where a shorter one ended" in said
    assert "train: 9/9 steps" in progress


@pytest.mark.usefixtures("project")
def test_fewer_steps_start_anew(capfd: Capture) -> None:
    train_for(6)
    expected = outcome()
    start_anew()
    train_for(8)
    capfd.readouterr()
    train_for(6)
    assert (
        "its state is that of step 8, and train.max_samples now ends it" in capfd.readouterr().out
    )
    assert outcome() == expected


@pytest.mark.usefixtures("project")
def test_forgotten_it_starts_anew(capfd: Capture) -> None:
    train_for(8)
    expected = outcome()
    forget.main(["train"])
    capfd.readouterr()
    train_for(8)
    said, progress = capfd.readouterr()
    assert handed_back() not in said
    assert "goes on" not in said
    assert "train: 8/8 steps" in progress
    assert outcome() == expected


@pytest.mark.usefixtures("project")
def test_every_seed_goes_on(capfd: Capture) -> None:
    choose(seeds=[0, 1])
    train_for(8)
    assert states() == ["step-00000008"] * 2
    capfd.readouterr()
    train_for(10)
    said = capfd.readouterr().out
    assert LONGER in said
    assert LONGER.replace("train:", "train seed-1:") in said
    assert states() == ["step-00000010"] * 2


@pytest.mark.slow
def test_several_processes_go_on_where_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_project(tmp_path, monkeypatch)
    choose(schedule="constant", gradient_accumulation_steps=1)
    train_for(16)
    expected = load_model(paths.MODEL).state_dict()
    start_anew()
    train_for(8)
    choose(max_samples=64)
    assert "train: 16/16 steps" in run_module(tmp_path, TORCHRUN)
    found = load_model(paths.MODEL).state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def test_it_starts_from_another_models_weights(project: Path, capfd: Capture) -> None:
    """Named by these, wherever they lie; rates so low that they stay what they were."""
    train_for(4)
    pretrained = weights(paths.MODEL)
    choose(seeds=[5])
    train_for(8)
    shutil.copytree(paths.MODEL, project / "first")
    before = weights(paths.MODEL)
    choose(seeds=[0], start="first", lr=1e-12, coarse_only=True)
    train_for(1)
    for folder in (paths.MODEL, paths.COARSE_ONLY):
        for name, value in weights(folder).items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)
    assert not torch.allclose(pretrained["q_static"], before["q_static"], atol=1e-3)
    capfd.readouterr()
    (project / "first").rename(project / "moved")
    choose(start="moved")
    train.main()
    assert handed_back() in capfd.readouterr().out
    shutil.copytree(paths.COARSE_ONLY, project / "other")
    choose(start="other")
    train.main()
    assert handed_back() not in capfd.readouterr().out


def test_another_architecture_is_no_start(project: Path) -> None:
    train_for(1)
    shutil.copytree(paths.MODEL, project / "first")
    choose(start="first")
    set_params(project, {"model": {"head_channels": 8, "temperature": 0.25}})
    different = r"model.head_channels is 16 there and 8 here, model.temperature is 0.6 there and 0"
    with pytest.raises(CheckpointError, match=rf"first is another model: {different}"):
        train.main()
    set_params(project, {"model": {"head_channels": 16, "temperature": 0.6}})
    content = (project / "first/model.safetensors").read_bytes()
    (project / "first/model.safetensors").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"first: .*safetensors is damaged"):
        train.main()
    (project / "first/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"first: .*first holds no config.json"):
        train.main()
    choose(start="nowhere")
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder"):
        train.main()
    assert read_json(paths.MODEL / "config.json")["seed"] == 0
