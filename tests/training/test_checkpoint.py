import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from fvlm.core.errors import CheckpointError
from fvlm.core.io import hash_json, read_json, temporary_name, write_json
from fvlm.core.kept import forget
from fvlm.training.checkpoint import (
    MODEL,
    REFERENCE,
    Checkpoints,
    TrainState,
    forget_finished,
)

# In the nested form that the train stage uses.
IDENTITY: dict[str, Any] = {
    "code": 1,
    "train": {"lr": 0.1, "seeds": [0]},
    "weights": {"dino": {"sha256": "d"}},
    "data": "abc",
}
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def make_model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)


def advance(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [
        value
        for parameter in model.parameters()
        if parameter.requires_grad
        for _, value in sorted(optimizer.state[parameter].items())
    ]


class Series:
    """Checkpoints of steps 1, 2, .. with the weights that belong to them."""

    def __init__(self, root: Path) -> None:
        self.checkpoints = Checkpoints(root, IDENTITY, "name")
        self.model, self.optimizer = make_model()
        self.state = TrainState()
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def save(self, steps: int = 1) -> None:
        for _ in range(steps):
            advance(self.model, self.optimizer)
            self.state.step += 1
            self.state.history.append({"step": self.state.step, "loss": 0.1 + 0.2})
            self.checkpoints.save(self.model, self.optimizer, self.state)
            self.weights[self.state.step] = {
                name: value.clone() for name, value in self.model.state_dict().items()
            }

    def folder(self, step: int) -> Path:
        return self.checkpoints.folder / f"step-{step:08d}"

    def resume(self) -> TrainState:
        """Resume into a new model; its weights must be those of the step that it reports."""
        model, optimizer = make_model()
        frozen = model[0].weight.clone()  # type: ignore[index]
        state = self.checkpoints.resume(model, optimizer)
        if state.step:
            for name, value in model.named_parameters():
                expected = self.weights[state.step][name] if value.requires_grad else frozen
                assert torch.equal(value, expected), name
            assert [row["step"] for row in state.history] == list(range(1, state.step + 1))
        return state


@pytest.fixture
def series(tmp_path: Path) -> Series:
    return Series(tmp_path / "train")


def test_everything_comes_back(series: Series) -> None:
    series.save(3)
    model, optimizer = make_model()
    state = series.checkpoints.resume(model, optimizer)
    assert state == series.state
    before = moments(series.model, series.optimizer)
    after = moments(model, optimizer)
    assert len(before) == 9
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert {value.dtype for value in after} == {torch.float32}


def test_nothing_saved_starts_at_step_zero(series: Series) -> None:
    assert series.resume() == TrainState()


def test_the_newest_two_are_kept_and_temporary_folders_of_living_processes(series: Series) -> None:
    own = f"-{os.getpid()}-"
    living, dead = (
        temporary_name("step-00000009").replace(own, f"-{pid}-") for pid in (os.getppid(), 4194999)
    )
    for name in (living, dead):
        (series.checkpoints.folder / name).mkdir(parents=True)
    series.save(5)
    names = sorted(path.name for path in series.checkpoints.folder.iterdir())
    assert names == [living, "step-00000004", "step-00000005"]


def test_a_checkpoints_name_is_on_disk_before_older_ones_go(
    series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def recorded(folder: Path) -> None:
        assert folder == series.checkpoints.folder
        seen.append(sorted(path.name for path in folder.glob("step-*")))

    monkeypatch.setattr("fvlm.training.checkpoint.fsync_folder", recorded)
    series.save(3)
    assert seen[-1] == ["step-00000001", "step-00000002", "step-00000003"]
    assert len(seen) == 3


def test_no_pickle_is_written(series: Series) -> None:
    series.save()
    assert sorted(path.name for path in series.folder(1).iterdir()) == sorted(FILES)
    for name in FILES:
        content = (series.folder(1) / name).read_bytes()
        assert json.loads(content) if name.endswith(".json") else load(content)  # else both raise


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("points", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_a_damaged_newest_falls_back_with_a_message(
    series: Series, capsys: pytest.CaptureFixture[str], name: str, points: int
) -> None:
    """Cut short or with one changed bit at many places; nothing of it may be believed."""
    series.save(2)
    path = series.folder(2) / name
    sound = path.read_bytes()
    places = np.linspace(0, len(sound) - 1, points).astype(int).tolist()
    for place in places:
        flipped = bytearray(sound)
        flipped[place] ^= 1 << (place % 7)
        for damaged in (bytes(flipped), sound[:place]):
            path.write_bytes(damaged)
            state = series.resume()
            message = capsys.readouterr().err
            if state.step == 2:
                # Only blanks between the values of the JSON may differ.
                assert name == "state.json"
                assert state == series.state
            else:
                assert state.step == 1
                assert f"train: checkpoint {series.folder(2)} is damaged" in message
                assert "falling back to the one before" in message
    path.unlink()
    assert series.resume().step == 1


@pytest.mark.parametrize("content", ["[]", "{}", "7", "null", '{"digest": 1}'])
def test_a_state_that_is_other_json_is_damaged(series: Series, content: str) -> None:
    series.save(2)
    (series.folder(2) / "state.json").write_text(content)
    assert series.resume().step == 1


def test_damaged_ones_do_not_crowd_out_new_ones(
    series: Series, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series.save(4)
    for step in (3, 4):
        (series.folder(step) / "state.json").write_text("")
    assert series.resume().step == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("; falling back to the one before")
    assert second.endswith("; starting anew")
    again = Series(tmp_path / "train")
    again.save(1)
    assert again.resume().step == 1


def test_a_killed_save_leaves_the_one_before(
    series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    series.save(1)
    replace, left = Path.replace, [0]

    def dying(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    for number in range(4):  # before each of the three files and before the folder's own name
        left[0] = number
        with pytest.raises(KeyboardInterrupt):
            series.save()
        series.state.step -= 1
        series.state.history.pop()
        assert series.resume().step == 1


def copy_to(series: Series, other: Checkpoints) -> None:
    other.folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(series.checkpoints.folder, other.folder)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"train": {"lr": 0.2, "seeds": [0]}}, "train.lr is 0.1 there and 0.2 here;"),
        ({"train": {"lr": 0.1, "seeds": [1]}}, r"train.seeds is \[0\] there and \[1\] here;"),
        ({"weights": {"dino": {"sha256": "e"}}}, "weights.dino.sha256 is 'd' there and 'e' here;"),
        (
            {"code": 2, "data": None},
            "code is 1 there and 2 here, data is 'abc' there and None here",
        ),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_naming_the_field(
    series: Series, change: dict[str, Any], field: str
) -> None:
    series.save()
    other = Checkpoints(series.checkpoints.folder.parent, IDENTITY | change, "other")
    assert other.resume(*make_model()) == TrainState()
    copy_to(series, other)
    with pytest.raises(CheckpointError, match=f"belongs to another training: {field}"):
        other.resume(*make_model())


def test_another_schema_is_refused(series: Series) -> None:
    series.save()
    path = series.folder(1) / "state.json"
    content = read_json(path)
    content.pop("digest")
    content["schema"] = 99
    write_json(path, {"digest": hash_json(content), **content})
    with pytest.raises(CheckpointError, match="schema 99, expected"):
        series.resume()


def test_weights_of_another_model_are_refused(series: Series) -> None:
    series.save()
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2), torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"other weights.*2\.bias"):
        series.checkpoints.resume(model, torch.optim.AdamW(model.parameters()))


def test_an_identity_with_tuples_is_recognised(tmp_path: Path) -> None:
    model, optimizer = make_model()
    for step in (1, 2):
        checkpoints = Checkpoints(tmp_path, {"shape": (1, 2), "train": {"lr": 1e-4}}, "name")
        assert checkpoints.resume(model, optimizer).step == step - 1
        checkpoints.save(model, optimizer, TrainState(step=step))


def test_of_a_finished_training_the_last_state_may_stay_for_a_longer_one(tmp_path: Path) -> None:
    """Until it is forgotten; that of a training which has gone on is not a finished one's."""
    model, optimizer = make_model()
    first, second = (Checkpoints(tmp_path, {}, name) for name in ("first", "second"))
    for checkpoints in (first, second):
        for step in (1, 2):
            checkpoints.save(model, optimizer, TrainState(step=step))
        checkpoints.finish(keep=True)
        assert checkpoints.reached() == [2]
    second.save(model, optimizer, TrainState(step=3))
    forget_finished(tmp_path, {"first"})
    assert (first.reached(), second.reached()) == ([2], [2, 3])
    forget_finished(tmp_path, {"second"})
    assert (first.reached(), second.reached()) == ([], [2, 3])
    assert not list(first.folder.iterdir())


def test_after_forget_no_state_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimizer = make_model()
    checkpoints = Checkpoints(tmp_path, {}, "name")
    checkpoints.save(model, optimizer, TrainState(step=4))
    forget(tmp_path.name)
    assert checkpoints.resume(model, optimizer).step == 0
    checkpoints.save(model, optimizer, TrainState(step=1))
    assert checkpoints.resume(model, optimizer).step == 1
    assert [path.name for path in checkpoints.folder.glob("step-*")] == ["step-00000001"]


def test_finishing_deletes_the_states_of_that_training_alone(tmp_path: Path) -> None:
    model, optimizer = make_model()
    finished, other = (Checkpoints(tmp_path, {"lr": rate}, f"lr-{rate}") for rate in (1, 2))
    for checkpoints in (finished, other):
        for step in (1, 2):
            checkpoints.save(model, optimizer, TrainState(step=step))
    finished.finish()
    assert finished.resume(*make_model()).step == 0
    assert other.resume(*make_model()).step == 2


def test_finishing_leaves_the_finished_model_that_lies_beside(tmp_path: Path) -> None:
    """What is handed back later has the same folder; what was noted for this training goes."""
    model, optimizer = make_model()
    checkpoints = Checkpoints(tmp_path, {}, "name")
    checkpoints.save(model, optimizer, TrainState(step=1))
    for name in (MODEL, REFERENCE.format("0-4-8")):
        (checkpoints.folder / name).touch()
    checkpoints.finish()
    assert [path.name for path in checkpoints.folder.iterdir()] == [MODEL]
