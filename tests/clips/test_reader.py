"""Tokens, frames and latents of the same clips, whatever the order of their shards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fvlm.clips.batch import Input
from fvlm.clips.reader import BatchMemory, ClipReader, open_clips
from fvlm.core.errors import ParamsError, ShardError
from fvlm.shards.manifest import Manifest
from tests import tiny

STORED = 4
Open = Callable[[Input], ClipReader]


def write_folder(folder: Path, fields: dict[str, Any], *, stored: int = STORED) -> None:
    """One val shard; `fields` maps keys to a number that fills the clip's arrays."""
    frames = "decode" in folder.name

    def arrays(number: int) -> dict[str, Any]:
        steps = np.arange(stored) + 10 * number
        pixels = np.broadcast_to(steps[:, None, None, None], (stored, 3, 2, 2)).astype(np.uint8)
        if frames:
            return {"frames.npy": pixels, "json": {"video_id": str(number)}}
        return {
            "tokens.npy": np.broadcast_to(steps[:, None, None], (stored, 2, 3)).astype(np.float16),
            "latents.npy": pixels[:, :1].astype(np.float16),
            "json": {"video_id": str(number)},
        }

    samples = [(key, arrays(number)) for key, number in fields.items()]
    manifest = Manifest(stage=folder.name, made_by="tiny", recipe={})
    tiny.write_shards(folder, {"val-000000.tar": samples}, manifest)


@pytest.fixture
def open_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "encode", {"a": 0, "b": 1, "c": 2})
    write_folder(tmp_path / "decode", {"c": 2, "a": 0, "b": 1})
    return lambda name: open_clips(
        tmp_path / "encode", tmp_path / "decode", split="val", input=name
    )


@pytest.mark.parametrize("name", ["features", "frames"])
def test_inputs_and_latents_belong_together(open_both: Open, name: Input) -> None:
    reader = open_both(name)
    assert (len(reader), reader.stored, reader.keys) == (3, STORED, ["a", "b", "c"])
    assert reader.metadata(1)["video_id"] == "1"
    for frames in (np.array([0, 2]), np.array([[0, 2], [1, 3]])):
        batch = reader.read(np.array([2, 1]), frames)
        expected = torch.from_numpy(np.broadcast_to(frames, (2, 2)) + np.array([[20], [10]]))
        assert batch.keys == ["c", "b"]
        assert batch.inputs.dtype == (torch.uint8 if name == "frames" else torch.float16)
        assert torch.equal(batch.inputs.flatten(2)[:, :, 0], expected.to(batch.inputs.dtype))
        assert torch.equal(batch.latents.flatten(2)[:, :, 0], expected.half())


def test_clips_of_one_folder_only_are_refused(open_both: Open, tmp_path: Path) -> None:
    write_folder(tmp_path / "decode", {"c": 2, "a": 0, "d": 1})
    with pytest.raises(ShardError, match=r"2 are in one of them only, such as b; run `dvc repro"):
        open_both("frames")
    open_both("features")


def test_another_number_of_frames_is_refused(open_both: Open, tmp_path: Path) -> None:
    write_folder(tmp_path / "decode", {"c": 2, "a": 0, "b": 1}, stored=5)
    with pytest.raises(ShardError, match="hold 5 frames of a clip, the encode shards 4"):
        open_both("frames")


def test_more_frames_than_stored_are_refused(open_both: Open) -> None:
    open_both("features").check_frames(STORED, "train.num_frames")
    with pytest.raises(ParamsError, match=r"train.num_frames \(5\) must be <= .*num_frames \(4\)"):
        open_both("features").check_frames(STORED + 1, "train.num_frames")


@pytest.mark.parametrize("name", ["features", "frames"])
def test_batches_in_turns_hold_the_same(open_both: Open, tmp_path: Path, name: Input) -> None:
    folders = tmp_path / "encode", tmp_path / "decode"
    memory = BatchMemory(2, pinned=False)
    reader, plain = open_clips(*folders, split="val", input=name, memory=memory), open_both(name)
    seen = []
    for rows in ([0, 1], [2, 0], [1, 2], [1], [0]):
        batch = reader.read(rows, np.array([1, 3]))
        expected = plain.read(rows, np.array([1, 3]))
        assert torch.equal(batch.inputs, expected.inputs)
        assert torch.equal(batch.latents, expected.latents)
        seen.append((batch.inputs.data_ptr(), batch.latents.data_ptr()))
    assert seen[0] == seen[2]
    assert not {*seen[0]} & {*seen[1]}


def test_memory_for_a_gpu_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, make = [], torch.empty

    def record(shape: tuple[int, ...], *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        wanted.append(pin_memory)
        return make(shape, dtype=dtype)  # there is no GPU to pin it for

    monkeypatch.setattr(torch, "empty", record)
    memory = BatchMemory(1, pinned=True)
    assert memory.array("latents", (2, 3), "float16").shape == (2, 3)
    assert wanted == [True]
