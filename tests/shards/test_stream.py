"""Streaming from a URL gives the same samples as reading, and notices damage first."""

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from fvlm.core.errors import ShardError
from fvlm.shards.read import open_shards
from fvlm.shards.stream import stream_shards

URL = "memory://bucket/toy"


@pytest.fixture
def bucket(project: Any) -> Any:
    """The toy's output, uploaded to a file system in memory."""
    project.run()
    files = fsspec.filesystem("memory")
    for name, data in project.out.items():
        files.pipe(f"/bucket/toy/{name}", data)
    yield files
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize("location", [URL, "data/toy", "data/toy/"])
@pytest.mark.usefixtures("bucket")
def test_streams_what_the_reader_reads(location: str) -> None:
    with open_shards(Path("data/toy"), split="train") as reader:
        samples = list(stream_shards(location, split="train"))
        assert [sample["__key__"] for sample in samples] == reader.keys
        for number, sample in enumerate(samples):
            batch = reader.read([number], ["frames", "latents"])
            np.testing.assert_array_equal(sample["frames.npy"], batch["frames"][0])
            np.testing.assert_array_equal(sample["latents.npy"], batch["latents"][0])
            assert sample["json"] == reader.metadata(number)


@pytest.mark.usefixtures("bucket")
def test_ranks_share_the_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    keys = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        keys.append({sample["__key__"] for sample in stream_shards(URL, split="train")})
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 11


@pytest.mark.usefixtures("bucket")
def test_workers_of_a_dataloader_share_the_shards() -> None:
    pipeline = stream_shards("data/toy", split="train")
    loader = torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=2)
    assert len({sample["__key__"] for sample in loader}) == 11


@pytest.mark.parametrize("position", [0, 700, 5000, -1])
def test_damage_is_noticed_before_the_first_sample(bucket: Any, position: int) -> None:
    path = "/bucket/toy/train-000001.tar"
    data = bytearray(bucket.cat(path))
    keys = [sample["__key__"] for sample in stream_shards(URL, split="train")]
    first = json.loads(bucket.cat("/bucket/toy/manifest.json"))["shards"][0]
    assert first["name"] == "train-000000.tar"
    data[position] ^= 1
    bucket.pipe(path, bytes(data))
    seen: list[str] = []
    with pytest.raises(ShardError, match=r"toy/train-000001.tar is damaged: expected"):
        seen.extend(sample["__key__"] for sample in stream_shards(URL, split="train"))
    assert seen == keys[: first["samples"]]
    assert len(seen) < len(keys) == 11
    bucket.pipe(path, bytes(data[:5120]))
    with pytest.raises(ShardError, match=r"got 5120 with"):
        list(stream_shards(URL, split="train"))


def test_missing_files_are_named(bucket: Any) -> None:
    with pytest.raises(ShardError, match=r"has no test shards"):
        stream_shards(URL, split="test")
    bucket.rm("/bucket/toy/val-000000.tar")
    with pytest.raises(ShardError, match=r"val-000000.tar cannot be read"):
        list(stream_shards(URL, split="val"))
    bucket.rm("/bucket/toy/manifest.json")
    with pytest.raises(ShardError, match=r"manifest.json cannot be read"):
        stream_shards(URL, split="train")
