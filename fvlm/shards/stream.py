"""Shards from anywhere: streaming through webdataset from a URL that fsspec understands.

For data that does not fit on local disk. Each shard is fetched whole into an unnamed temporary file
and verified against the manifest before its first sample is used, as `read.py` does for local ones;
afterwards the file is gone. Random access is `read.py`'s.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

import fsspec
import numpy as np

from fvlm.core.errors import ShardError
from fvlm.shards.manifest import NAME, Manifest, ShardEntry, parse_manifest

CHUNK = 8 << 20  # bytes fetched at once


def stream_shards(location: str, *, split: str) -> Any:
    """A `webdataset.DataPipeline` of the samples of a split, in manifest order.

    location: URL of a stage's output folder: a path, `s3://...`, `https://...`, `memory://...`.
    Samples are dicts: `__key__`, `frames.npy` and the like as arrays, `json` as a dict. Shards are
    divided among ranks (`RANK`, `WORLD_SIZE`) and DataLoader workers. Shuffle with
    `.append(webdataset.shuffle(1000))`. Raises ShardError, also while iterating, when the manifest
    or a shard is missing or damaged.
    """
    import webdataset
    from webdataset.tariterators import group_by_keys, tar_file_expander

    location = location.rstrip("/")
    try:
        with fsspec.open(f"{location}/{NAME}", "rb") as file:
            manifest = parse_manifest(file.read(), f"{location}/{NAME}", Manifest)
    except OSError as error:
        raise ShardError(f"{location}/{NAME} cannot be read: {error!r}") from None
    entries = {f"{location}/{e.name}": e for e in manifest.shards if e.split == split}
    if not entries:
        raise ShardError(f"{location} has no {split} shards")

    def fetch_all(shards: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            with fetch(shard["url"], entries[shard["url"]]) as file:
                yield shard | {"stream": file}

    return webdataset.DataPipeline(
        webdataset.SimpleShardList(list(entries)),
        webdataset.split_by_node,
        webdataset.split_by_worker,
        fetch_all,
        tar_file_expander,
        group_by_keys,
        webdataset.map(_decode),
    )


def fetch(url: str, entry: ShardEntry) -> IO[bytes]:
    """A temporary file with the verified content of a shard, at its start."""
    digest, size = hashlib.sha256(), 0
    copy = tempfile.TemporaryFile()  # noqa: SIM115  closed by the caller
    try:
        with fsspec.open(url, "rb") as remote:
            while data := remote.read(CHUNK):
                digest.update(data)
                size += len(data)
                copy.write(data)
    except OSError as error:
        copy.close()
        raise ShardError(f"{url} cannot be read: {error!r}") from error
    if size != entry.bytes or digest.hexdigest() != entry.sha256:
        copy.close()
        raise ShardError(
            f"{url} is damaged: expected {entry.bytes} bytes with sha256 {entry.sha256}, "
            f"got {size} with {digest.hexdigest()}; upload it again"
        )
    copy.seek(0)
    return copy


def _decode(sample: dict[str, Any]) -> dict[str, Any]:
    decoded = {"__key__": sample["__key__"]}
    for name, data in sample.items():
        if name.endswith(".npy"):
            decoded[name] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        elif name == "json":
            decoded[name] = json.loads(data)
    return decoded
