"""Checkpoints: safetensors and JSON, atomic, the newest two kept.

A checkpoint is a folder `step-00001234/` below the folder of its configuration:

    model.safetensors      trainable weights, float32
    optimizer.safetensors  AdamW's moments and step counts, `{parameter}.{moment}`
    state.json             step, history of every step, sha256 of the two files and of itself

The random state is not stored because nothing depends on it: clips, frames and seeds are pure
functions of (seed, position). Of several processes only the main one reads and writes; the format
is the same for any number of them, also when each holds a part of the weights only.

The last checkpoint of a finished training may stay, so that a longer one goes on from it; a file
`finished` beside it says that nothing is left to do for this one.
"""

import json
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fvlm.core.errors import CheckpointError, FvlmError
from fvlm.core.io import (
    atomic_write,
    delete_leftovers,
    fsync_folder,
    hash_json,
    read_json,
    sha256_file,
    temporary_name,
    write_json,
)
from fvlm.core.kept import counts
from fvlm.training.distributed import from_main, is_main, whole

SCHEMA = 1
KEPT = 2
STATE, MODEL, OPTIMIZER = "state.json", "model.safetensors", "optimizer.safetensors"
REFERENCE = "reference-{}.safetensors"  # beside the checkpoints: see preference.py
FINISHED = "finished"


@dataclass
class TrainState:
    """What a training has done so far, besides weights and optimizer moments."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Checkpoints:
    """Checkpoints of the training `name`: `identity` is every parameter and input that matters.

    The folder `root` has the name of the stage.
    """

    def __init__(self, root: Path, identity: dict[str, Any], name: str) -> None:
        # As JSON gives it back: a tuple would differ from the list that was saved.
        self._identity = json.loads(json.dumps(identity))
        self.folder = root / name

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Write a checkpoint under its final name only when all of it is on disk."""
        weights = dict[str, Tensor](_trainable(model))
        tensors = {MODEL: whole(weights), OPTIMIZER: whole(_moments(model, optimizer))}
        if not is_main():
            return
        (self.folder / FINISHED).unlink(missing_ok=True)
        final = self._at(state.step)
        temporary = self.folder / temporary_name(final.name)
        for name, values in tensors.items():
            with atomic_write(temporary / name) as file:
                file.write(save(values))
        content = {
            "schema": SCHEMA,
            "identity": self._identity,
            "step": state.step,
            "sha256": {name: sha256_file(temporary / name) for name in tensors},
            "history": state.history,
        }
        write_json(temporary / STATE, {"digest": hash_json(content), **content})
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
        fsync_folder(self.folder)
        self._prune(final)

    def reached(self) -> list[int]:
        """Steps of the checkpoints that count: not of those before `fvlm forget train`."""
        return [_step_of(path) for path in self._saved() if counts(self.folder.parent.name, path)]

    def resume(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int | None = None
    ) -> TrainState:
        """Load the newest sound checkpoint, or start at step 0 when there is none.

        steps: those of the training: later checkpoints are of a longer one and do not count.

        A damaged one is reported and the one before it is used. Raises CheckpointError when a
        checkpoint belongs to another configuration, naming the fields. A folder is named by its
        configuration, so that is met only where one was copied, moved or renamed by hand.
        Processes other than the main one get its weights, moments and step, but no history.
        """
        weights: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        state = TrainState()
        known = [step for step in self.reached() if steps is None or step <= steps]
        saved = [self._at(step) for step in known] if is_main() else []
        while saved and state.step == 0:
            try:
                weights, moments, state = self._load(saved.pop(), model)
            except _DamagedError as error:
                following = "falling back to the one before" if saved else "starting anew"
                print(f"train: {error}; {following}", file=sys.stderr)
        step = torch.tensor(state.step)
        state.step = int(from_main(step, like=step))
        if state.step > 0:
            _restore(model, optimizer, weights, moments)
        return state

    def finish(self, *, keep: bool = False) -> None:
        """This training is complete, and its model saved. keep: the newest checkpoint stays."""
        saved = self._saved()
        for old in saved[: len(saved) - keep]:
            shutil.rmtree(old, ignore_errors=True)
        for path in self.folder.glob(REFERENCE.format("*")):  # only this training could need it
            path.unlink()
        if keep:
            (self.folder / FINISHED).touch()

    def _at(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _saved(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _prune(self, newest: Path) -> None:
        """Keep the newest two. Later ones are damaged: training resumed from before them."""
        saved = self._saved()
        last = saved.index(newest) + 1
        for unwanted in saved[: max(0, last - KEPT)] + saved[last:]:
            shutil.rmtree(unwanted)
        delete_leftovers(self.folder)

    def _load(
        self, folder: Path, model: nn.Module
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], TrainState]:
        saved = _read_sound(folder)
        if saved["schema"] != SCHEMA:
            raise CheckpointError(f"{folder}: schema {saved['schema']}, expected {SCHEMA}")
        _check_identity(folder, saved["identity"], self._identity)
        weights = load_file(folder / MODEL)
        if different := weights.keys() ^ _trainable(model).keys():
            # Otherwise they would keep their random values in silence.
            raise CheckpointError(f"{folder}: other weights than this model's: {sorted(different)}")
        state = TrainState(step=saved["step"], history=saved["history"])
        return weights, load_file(folder / OPTIMIZER), state


def forget_finished(root: Path, keep: Collection[str]) -> None:
    """Delete the checkpoints of finished trainings in the folders of `root`, but of those named."""
    for mark in root.glob(f"*/{FINISHED}"):
        if mark.parent.name not in keep:
            for old in mark.parent.glob("step-*"):
                shutil.rmtree(old, ignore_errors=True)
            mark.unlink(missing_ok=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


class _DamagedError(Exception):
    """This checkpoint cannot be used; an older one may."""


def _read_sound(folder: Path) -> dict[str, Any]:
    """The content of state.json, once it and the two files beside it match their hashes."""
    try:
        saved: dict[str, Any] = read_json(folder / STATE)
        sound = saved.pop("digest") == hash_json(saved) and saved["sha256"] == {
            name: sha256_file(folder / name) for name in (MODEL, OPTIMIZER)
        }
    except (FvlmError, OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise _DamagedError(f"checkpoint {folder} is damaged ({error!r})") from None
    if not sound:
        raise _DamagedError(f"checkpoint {folder} is damaged (sha256 differs)")
    return saved


def _check_identity(folder: Path, saved: dict[str, Any], expected: dict[str, Any]) -> None:
    if different := differences(saved, expected):
        raise CheckpointError(
            f"{folder} belongs to another training: {', '.join(different)}; "
            "remove the folder to start anew"
        )


def differences(saved: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Where nested values differ, in words, by dotted name."""
    there, here = _flat(saved), _flat(expected)
    return [
        f"{name} is {there.get(name)!r} there and {here.get(name)!r} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{moment}": value
        for name, parameter in _trainable(model).items()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def _restore(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
) -> None:
    """Set weights and moments to those of the main process; the others pass empty ones."""
    parameters = _trainable(model)
    # A weight that no loss ever reached has no moments.
    known = torch.tensor([f"{name}.{_COUNT}" in moments for name in parameters])
    known = from_main(known, like=known)
    for (name, parameter), has_moments in zip(parameters.items(), known.tolist(), strict=True):
        with torch.no_grad():
            parameter.copy_(from_main(weights.get(name), like=parameter))
        if has_moments:
            shapes = dict.fromkeys(_AVERAGES, parameter.detach())
            shapes[_COUNT] = torch.zeros((), device=parameter.device)
            optimizer.state[parameter] = {
                moment: from_main(moments.get(f"{name}.{moment}"), like=like)
                for moment, like in shapes.items()
            }


_COUNT, _AVERAGES = "step", ("exp_avg", "exp_avg_sq")  # AdamW's names
