"""A tar header is not trusted: a valid checksum does not make its size true."""

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.errors import ShardError
from fvlm.shards.index import index_shard
from fvlm.shards.manifest import Manifest, ShardEntry, read_manifest

NO_SIZES = [-1, -512, -1024, -(2**40), 10**6, 2**62, 2**80]  # bytes; a shard has 40 KiB


def write_size(path: Path, member: int, size: int) -> str:
    """Let the header of one member claim `size`, with a valid checksum; returns its key."""
    with tarfile.open(path) as tar:
        header = tar.getmembers()[member]
    header.size = size
    data = bytearray(path.read_bytes())
    block = header.tobuf(tarfile.GNU_FORMAT)  # base-256 where digits do not do
    data[header.offset : header.offset + len(block)] = block
    path.unlink()  # never write through a hard link
    path.write_bytes(data)
    return header.name.partition(".")[0]


@pytest.fixture
def shard(project: Any) -> tuple[Path, ShardEntry]:
    """A shard of several samples, three members each, and its entry in the manifest."""
    project.run()
    folder = Path("data/toy")
    entry = max(read_manifest(folder, Manifest).shards, key=lambda entry: entry.samples)
    assert entry.samples > 1
    return folder / entry.name, entry


@pytest.mark.parametrize("size", NO_SIZES)
@pytest.mark.parametrize("member", [0, 4, -1])
def test_size_out_of_the_file_is_damage_in_its_sample(
    shard: tuple[Path, ShardEntry], member: int, size: int
) -> None:
    path, entry = shard
    key = write_size(path, member, size)
    message = rf"{path} is damaged: expected sha256 .*, in or right behind sample {key};"
    with pytest.raises(ShardError, match=message):
        index_shard(path, entry)


@pytest.mark.parametrize("size", NO_SIZES)
@pytest.mark.parametrize("member", [0, 2, -1])
def test_size_out_of_the_file_is_refused_though_the_manifest_knows_the_bytes(
    shard: tuple[Path, ShardEntry], member: int, size: int
) -> None:
    path, entry = shard
    write_size(path, member, size)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ShardError, match=rf"{path} is no shard: {size} bytes in "):
        index_shard(path, entry.model_copy(update={"sha256": sha256}))
