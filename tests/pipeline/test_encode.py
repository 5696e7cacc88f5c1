"""The encode stage: overlapped work writes the bytes of plain work, and an error leaves no part."""

import errno
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from fvlm.clips.reader import open_clips
from fvlm.core.errors import FvlmError, ShardError
from fvlm.core.io import read_json
from fvlm.encoders.frames import EncodeParams, FrameEncoder, load_encoder
from fvlm.shards import write
from fvlm.shards.manifest import EncodedManifest, read_manifest
from fvlm.shards.read import ShardReader, open_shards
from fvlm.shards.write import write_shard
from pipeline import encode, paths
from tests import tiny

NUM_FRAMES, SIZE = 4, 32
TIMINGS = Path(".state/timings/encode.json")
SHARDS = {"train-000000.tar": 5, "train-000001.tar": 2, "val-000000.tar": 3}  # name -> clips


@pytest.fixture
def params(tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncodeParams:
    """A project folder with decoded shards and tiny models, as the working directory."""
    monkeypatch.chdir(tmp_path)
    values = {
        "dino": str(tiny_models / "dino"),
        "vae": str(tiny_models / "vae"),
        "dino_layers": 0,
        "layer": 2,
        "batch_frames": 8,
        "dtype": "float32",
        "compile": False,
    }
    YAML().dump({"encode": values}, Path("params.yaml"))
    rng, shape = np.random.default_rng(0), (NUM_FRAMES, 3, SIZE, SIZE)
    shards = {
        name: [
            (
                f"{name[:-4]}-{number}",
                {"frames.npy": rng.integers(0, 256, shape, np.uint8), "json": {"number": number}},
            )
            for number in range(count)
        ]
        for name, count in SHARDS.items()
    }
    tiny.write_shards(paths.FRAMES, shards, tiny.frame_manifest(*shape))
    return EncodeParams.model_validate(values)


def made() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(paths.ENCODED.glob("*"))}


def plain(params: EncodeParams, folder: Path) -> dict[str, bytes]:
    """The same shards by a loop over the clips, without threads."""
    encoder, _ = load_encoder(params, torch.device("cpu"))
    together = encoder.batch_clips(NUM_FRAMES)
    for split in ("train", "val"):
        with open_shards(paths.FRAMES, split=split) as reader:
            first = 0
            for name in (name for name in SHARDS if name.startswith(split)):
                samples: list[tuple[str, dict[str, Any]]] = []
                end = first + SHARDS[name]
                for start in range(first, end, together):
                    rows = range(start, min(start + together, end))
                    tokens, latents = encoder.encode(reader.read(rows, ["frames"])["frames"])
                    for number, row in enumerate(rows):
                        fields = {"tokens.npy": tokens[number], "latents.npy": latents[number]}
                        samples.append((reader.keys[row], fields | {"json": reader.metadata(row)}))
                write_shard(folder / name, samples)
                first = end
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


@pytest.mark.parametrize("threads", [1, 3])
def test_overlapped_work_writes_the_same_bytes(
    threads: int, params: EncodeParams, tmp_path: Path
) -> None:
    torch.set_num_threads(threads)
    try:
        encode.main()
    finally:
        torch.set_num_threads(1)
    found = made()
    manifest = json.loads(found.pop("manifest.json"))
    assert found == plain(params, tmp_path / "plain")
    assert [shard["name"] for shard in manifest["shards"]] == list(SHARDS)
    assert read_json(paths.ENCODE_METRICS) == {"inputs": 10, "encoded": 10, "shards": 3}
    assert read_json(TIMINGS)["reused"] == 0


@pytest.mark.usefixtures("params")
def test_progress_and_timings_add_up_when_shards_are_reused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    encode.main()
    first, metrics = made(), paths.ENCODE_METRICS.read_bytes()
    assert "encode: 10/10 clips" in capsys.readouterr().err
    encode.main()
    assert made() == first
    assert paths.ENCODE_METRICS.read_bytes() == metrics
    timings = read_json(TIMINGS)
    assert (timings["reused"], timings["clips_per_second"]) == (10, None)
    assert timings["peak_memory_gib"] > 0
    assert "encode: 10/10 clips, 0.00 clips/s, reused 10" in capsys.readouterr().err


def fail_at_call(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, error: Exception
) -> None:
    """The `call`-th call of a function, counted from 1, raises; later ones work."""
    original, lock, calls = getattr(owner, name), threading.Lock(), 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        with lock:
            calls += 1
            fails = calls == call
        if fails:
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, failing)


# Train: 2 + 2 + 1 and 2 clips together, val: 2 + 1; at least 7 writes a clip.
FAULTS = [
    (ShardReader, "read", ShardError("train-000000.tar is damaged"), (1, 3, 4, 6)),
    (FrameEncoder, "encode", RuntimeError("out of memory on the GPU"), (1, 2, 5, 6)),
    (write._HashingWriter, "write", OSError(errno.ENOSPC, "no space left"), (1, 30, 50, 70)),
]


@pytest.mark.parametrize(
    ("owner", "name", "error", "call"),
    [(owner, name, error, call) for owner, name, error, calls in FAULTS for call in calls],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_an_error_surfaces_and_leaves_no_part(
    owner: Any,
    name: str,
    error: Exception,
    call: int,
    params: EncodeParams,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = plain(params, tmp_path / "plain")
    torch.set_num_threads(3)
    try:
        with monkeypatch.context() as patch:
            fail_at_call(patch, owner, name, call, error)
            with pytest.raises((FvlmError, RuntimeError), match=str(error.args[-1])):
                encode.main()
        assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())
        assert not paths.ENCODED.exists()
        assert not paths.ENCODE_METRICS.exists()
        assert not [path for path in tmp_path.rglob("*.tmp") if path.is_file()]
        for kept in Path(".state/shards/encode").glob("*.tar"):
            assert kept.read_bytes() in expected.values(), "only whole shards are kept"
        encode.main()
    finally:
        torch.set_num_threads(1)
    assert {name: data for name, data in made().items() if name.endswith(".tar")} == expected


def test_tokens_need_not_be_stored(params: EncodeParams) -> None:
    """Without them the latents are the same bytes, and a model that reads tokens is refused."""
    encode.main()
    with open_shards(paths.ENCODED, split="val") as reader:
        expected = reader.read(range(3), ["latents"])["latents"].copy()
    YAML().dump({"encode": params.model_dump() | {"tokens": False}}, Path("params.yaml"))
    encode.main()
    with open_shards(paths.ENCODED, split="val") as reader:
        assert set(reader.fields) == {"latents"}
        np.testing.assert_array_equal(reader.read(range(3), ["latents"])["latents"], expected)
    manifest = read_manifest(paths.ENCODED, EncodedManifest)
    assert manifest.recipe["tokens"] is False
    with pytest.raises(ShardError, match=r"set encode.tokens: true .*, or train.input: frames"):
        open_clips(paths.ENCODED, paths.FRAMES, split="val", input="features")
    clips = open_clips(paths.ENCODED, paths.FRAMES, split="val", input="frames")
    batch = clips.read([0, 2], np.arange(NUM_FRAMES))
    assert batch.inputs.shape == (2, NUM_FRAMES, 3, SIZE, SIZE)
    np.testing.assert_array_equal(batch.latents.numpy(), expected[[0, 2]])
