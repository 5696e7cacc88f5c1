"""Random access to the samples of shards, near the speed of memory.

Axis letters: B samples of a batch, T frames stored per sample, T' frames read.

The place of every array is known from an index, arrays are stored C-contiguous with frames as
rows, and threads read rows straight from the file into the batch: nothing is parsed, copied twice
or sent between processes, and frames that were not asked for are not read.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fvlm.core.errors import ShardError
from fvlm.core.machine import core_count
from fvlm.core.progress import Progress
from fvlm.shards.index import ShardIndex, index_shard
from fvlm.shards.manifest import Manifest, ShardEntry, read_manifest
from fvlm.shards.verify import DamagedShardError, is_verified


def open_shards(folder: Path, *, split: str, threads: int | None = None) -> "ShardReader":
    """Open all shards of a split for reading, each verified before its first sample is used.

    Verification reads a file once (size, sha256) and is remembered; later it costs one stat.
    threads: readers of a batch; default: the available cores, 2 to 16.
    Raises ShardError naming the shard (and sample) that is missing, damaged or unlike the others.
    """
    manifest = read_manifest(folder, Manifest)
    entries = [entry for entry in manifest.shards if entry.split == split]
    if not entries:
        splits = sorted({entry.split for entry in manifest.shards})
        raise ShardError(
            f"{folder} has no {split} shards, only {splits}: none of those videos was decoded. "
            "data/decode/manifest.json has the reasons; set collect.source to more videos"
        )
    threads = threads or min(max(core_count(), 2), 16)
    paths = [folder / entry.name for entry in entries]
    pool = ThreadPoolExecutor(threads, thread_name_prefix="shards")
    try:
        indexes = _index_all(pool, paths, entries)
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    return ShardReader(paths=paths, indexes=indexes, pool=pool)


def verify_shards(folder: Path, *, part: int, parts: int) -> None:
    """Verify and index every `parts`-th shard of a folder, from number `part` on.

    Processes of one machine divide a folder so; what they find is remembered, and whoever opens it
    then reads no shard again. Raises ShardError as `open_shards`.
    """
    entries = read_manifest(folder, Manifest).shards[part::parts]
    with ThreadPoolExecutor(min(max(core_count() // parts, 1), 16)) as pool:
        _index_all(pool, [folder / entry.name for entry in entries], entries)


def open_shard(path: Path, entry: ShardEntry) -> "ShardReader":
    """Open one shard, verified against its entry in the manifest; raises ShardError."""
    index = index_shard(path, entry)
    pool = ThreadPoolExecutor(2, thread_name_prefix="shards")
    return ShardReader(paths=[path], indexes=[index], pool=pool)


class ShardReader:
    """The samples of one split, numbered from 0 in manifest order.

    Attributes: `keys`, one a sample; `fields`, name -> dtype and shape of one sample.
    """

    def __init__(
        self,
        *,
        paths: list[Path],
        indexes: list[ShardIndex],
        pool: ThreadPoolExecutor,
    ) -> None:
        self.keys = [key for index in indexes for key in index.keys]
        self.fields = indexes[0].fields
        self._paths, self._pool = paths, pool
        self._stamps = [_stamp(path.stat()) for path in paths]
        counts = [len(index.keys) for index in indexes]
        self._shard = np.repeat(np.arange(len(paths), dtype=np.int32), counts)
        self._offsets = {
            name: np.concatenate([index.offsets[name] for index in indexes]) for name in self.fields
        }
        self._metadata = np.concatenate([index.metadata for index in indexes])

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {f.dtype}{list(f.shape)}" for name, f in self.fields.items())
        return f"ShardReader({len(self)} samples in {len(self._paths)} shards: {fields})"

    def metadata(self, sample: int) -> dict[str, Any]:
        """The JSON of one sample."""
        offset, size = (int(value) for value in self._metadata[sample])
        buffer = bytearray(size)
        descriptor = self._open(sample)
        try:
            self._read_into(descriptor, sample, memoryview(buffer), offset)
        finally:
            os.close(descriptor)
        return dict(json.loads(buffer))

    def all_metadata(self) -> Iterator[dict[str, Any]]:
        """The JSON of every sample in order; each shard is opened once."""
        starts = np.flatnonzero(np.diff(self._shard, prepend=-1)).tolist()
        for first, last in pairwise([*starts, len(self)]):
            descriptor = self._open(first)
            try:
                for sample in range(first, last):
                    offset, size = (int(value) for value in self._metadata[sample])
                    buffer = bytearray(size)
                    self._read_into(descriptor, sample, memoryview(buffer), offset)
                    yield json.loads(buffer)
            finally:
                os.close(descriptor)

    def read(
        self,
        indices: Sequence[int] | NDArray[np.integer],
        fields: Sequence[str],
        *,
        frames: ArrayLike | None = None,
        out: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Read a batch: field -> array [B, T', ...] of the stored dtype.

        indices: [B] sample numbers. frames: [B, T'] or [T'] frame numbers in any order; None: all.
        out: C-contiguous arrays to read into (pinned memory, for example); made when None.
        Raises IndexError for a sample or frame that does not exist, ShardError for a shard that
        changed since it was opened.
        """
        samples = np.asarray(indices, np.int64)
        if samples.size and not 0 <= samples.min() <= samples.max() < len(self):
            raise IndexError(f"sample numbers must be 0 to {len(self) - 1}, got {samples.tolist()}")
        rows = {name: self._rows(name, len(samples), frames) for name in fields}
        batch = {name: self._target(name, rows[name], out) for name in fields}
        views = {
            name: array.reshape(len(samples), math.prod(array.shape[1:])).view(np.uint8)
            for name, array in batch.items()
        }
        tasks = self._pool.map(
            lambda position: self._read_sample(position, samples, rows, views), range(len(samples))
        )
        for _ in tasks:  # raises what a thread raised
            pass
        return batch

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, name: str, count: int, frames: ArrayLike | None) -> NDArray[np.int64]:
        """[B, T'] frame numbers."""
        stored = self.fields[name].shape[0]
        chosen = np.arange(stored) if frames is None else np.asarray(frames, np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < stored:
            raise IndexError(f"{name}: frame numbers must be 0 to {stored - 1}, got {chosen}")
        return np.broadcast_to(chosen, (count, chosen.shape[-1]))

    def _target(
        self, name: str, rows: NDArray[np.int64], out: Mapping[str, NDArray[Any]] | None
    ) -> NDArray[Any]:
        field = self.fields[name]
        shape, dtype = (*rows.shape, *field.shape[1:]), np.dtype(field.dtype)
        array = np.empty(shape, dtype) if out is None else out[name]
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(
                f"out[{name!r}]: expected C-contiguous {dtype}{list(shape)}, "
                f"got {array.dtype}{list(array.shape)}"
            )
        return array

    def _read_sample(
        self,
        position: int,
        samples: NDArray[np.int64],
        rows: dict[str, NDArray[np.int64]],
        views: dict[str, NDArray[np.uint8]],
    ) -> None:
        sample = int(samples[position])
        descriptor = self._open(sample)
        try:
            for name, view in views.items():
                target = view[position].data
                chosen = rows[name][position]
                row_bytes = len(target) // max(len(chosen), 1)
                start = int(self._offsets[name][sample])
                for first, last in _runs(chosen):
                    part = target[first * row_bytes : last * row_bytes]
                    offset = start + int(chosen[first]) * row_bytes
                    self._read_into(descriptor, sample, part, offset)
        finally:
            os.close(descriptor)

    def _open(self, sample: int) -> int:
        """A descriptor of the sample's shard, which must be the file that was verified."""
        shard = self._shard[sample]
        path = self._paths[shard]
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ShardError(f"{path} vanished while it was in use; run `dvc checkout`") from None
        if _stamp(os.fstat(descriptor)) != self._stamps[shard]:
            os.close(descriptor)
            raise DamagedShardError(path, "it changed while it was in use")
        return descriptor

    def _read_into(self, descriptor: int, sample: int, target: memoryview, offset: int) -> None:
        while len(target):
            count = os.preadv(descriptor, [target], offset)
            if count == 0:
                path = self._paths[self._shard[sample]]
                raise DamagedShardError(path, f"it ends inside sample {self.keys[sample]}")
            target, offset = target[count:], offset + count


def _runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """[start, end) positions of ascending neighbours, which lie side by side in the file."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    return pairwise([0, *ends.tolist(), len(rows)] if len(rows) else [])


def _index_all(
    pool: ThreadPoolExecutor, paths: list[Path], entries: list[ShardEntry]
) -> list[ShardIndex]:
    """Verify and index shards side by side; all must hold the same fields."""
    news = [not is_verified(path, e.sha256) for path, e in zip(paths, entries, strict=True)]
    progress = Progress("verify", total=sum(news), unit="shard") if any(news) else None
    indexes: list[ShardIndex] = []
    with progress or nullcontext():
        for index, path, new in zip(
            pool.map(index_shard, paths, entries), paths, news, strict=True
        ):
            indexes.append(index)
            if index.fields != indexes[0].fields:
                raise ShardError(
                    f"{path}: expected samples of {indexes[0].fields} as in {paths[0].name}, "
                    f"got {index.fields}"
                )
            if progress and new:
                progress.advance()
    return indexes


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
