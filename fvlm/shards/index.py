"""Where each sample's fields lie inside a shard: byte offsets from one walk over the tar headers.

The index is remembered in the cache folder by the shard's sha256, so that it can never belong to
another content.
"""

import io
import math
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fvlm.core.errors import FvlmError, ShardError
from fvlm.shards.manifest import ShardEntry
from fvlm.shards.verify import DamagedShardError, recall, remember, verify_file

NPY_HEADER = 4096  # bytes; more than the header of any plain array
CHUNK = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class Field:
    """What one sample holds under a name: `frames`, `tokens`, `latents`."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ShardIndex:
    """A shard's samples in stored order. Offsets and sizes are bytes from the tar's start."""

    keys: list[str]
    fields: dict[str, Field]  # the same for all samples
    offsets: dict[str, NDArray[np.int64]]  # by field [n]: where each sample's C-contiguous data is
    metadata: NDArray[np.int64]  # [n,2] offset and size of each sample's JSON


@dataclass(frozen=True)
class _Member:
    key: str
    name: str
    start: int  # of the header
    data: int
    size: int

    @property
    def end(self) -> int:
        return self.data + -(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def index_shard(path: Path, entry: ShardEntry) -> ShardIndex:
    """Verify a shard against its manifest entry and say where its samples lie.

    Raises ShardError that names the shard and, as far as it can be told, the sample.
    """
    try:
        verify_file(path, size=entry.bytes, sha256=entry.sha256)
    except DamagedShardError as damage:
        place = locate_damage(path, entry.sample_crc32)
        raise DamagedShardError(path, f"{damage.detail}, {place}") from None
    with suppress(FvlmError, OSError, TypeError, ValueError, KeyError):
        return _parse(recall("offsets", entry.sha256))
    index = _index(path)
    if len(index.keys) != entry.samples:
        raise ShardError(f"{path}: expected {entry.samples} samples, got {len(index.keys)}")
    lists = {name: offsets.tolist() for name, offsets in index.offsets.items()}
    fields = {name: asdict(field) for name, field in index.fields.items()}
    stored = {"keys": index.keys, "fields": fields, "offsets": lists}
    remember("offsets", entry.sha256, stored | {"metadata": index.metadata.tolist()})
    return index


def locate_damage(path: Path, sample_crc32: str) -> str:
    """Which part of a damaged shard differs from what was written: `in sample KEY`."""
    members: list[_Member] = []
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        try:
            members.extend(_members(descriptor))  # keeps those before an error
            unfinished = None
        except tarfile.HeaderError:
            unfinished = members[-1].key if members else "(the first)"
        for number, (key, group) in enumerate(groupby(members, attrgetter("key"))):
            if key == unfinished:
                break
            parts = list(group)
            expected = sample_crc32[8 * number : 8 * number + 8]
            if f"{_crc32(descriptor, parts[0].start, parts[-1].end):08x}" != expected:
                return f"in sample {key}"
    if unfinished:
        return f"in or right behind sample {unfinished}"
    return f"behind the last sample {members[-1].key if members else ''}"


def _index(path: Path) -> ShardIndex:
    keys, metadata = list[str](), list[tuple[int, int]]()
    common, offsets = dict[str, Field](), dict[str, list[int]]()
    with path.open("rb", buffering=0) as file:
        try:
            walked = list(_members(file.fileno()))
        except tarfile.HeaderError as error:
            raise ShardError(f"{path} is no shard: {error}") from None
        for key, members in groupby(walked, attrgetter("key")):
            fields = {}
            for member in members:
                if member.name == "json":
                    metadata.append((member.data, member.size))
                    continue
                name = member.name.removesuffix(".npy")
                fields[name], offset = _array_header(path, file.fileno(), member)
                offsets.setdefault(name, []).append(offset)
            keys.append(key)
            common = common or fields
            if fields != common or len(metadata) != len(keys):
                raise ShardError(f"{path}: sample {key}: expected {common} and json, got {fields}")
    return _compact(keys, common, offsets, metadata)


def _members(descriptor: int) -> Iterator[_Member]:
    """Walk the tar; raises tarfile.HeaderError at a damaged header, a missing end, an untrue size.

    The member whose size does not fit into the file still comes first, so that its key is known.
    """
    offset, length = 0, os.fstat(descriptor).st_size
    while True:
        block = os.pread(descriptor, tarfile.BLOCKSIZE, offset)
        if block == bytes(tarfile.BLOCKSIZE):
            return
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        key, _, name = header.name.partition(".")
        member = _Member(key, name, offset, offset + tarfile.BLOCKSIZE, header.size)
        yield member
        if not 0 <= member.size <= length - member.data:
            raise tarfile.HeaderError(f"{member.size} bytes in {header.name}")
        offset = member.end


def _array_header(path: Path, descriptor: int, member: _Member) -> tuple[Field, int]:
    """Dtype and shape of a stored array, and where its data starts."""
    header = io.BytesIO(os.pread(descriptor, min(member.size, NPY_HEADER), member.data))
    try:
        np.lib.format.read_magic(header)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    except ValueError as error:
        raise ShardError(f"{path}: sample {member.key}: {member.name}: {error}") from None
    if fortran or header.tell() + math.prod(shape) * dtype.itemsize != member.size:
        raise ShardError(f"{path}: sample {member.key}: {member.name} is not a plain C array")
    return Field(dtype.str, tuple(shape)), member.data + header.tell()


def _parse(stored: dict[str, Any]) -> ShardIndex:
    fields = {name: Field(f["dtype"], tuple(f["shape"])) for name, f in stored["fields"].items()}
    return _compact(stored["keys"], fields, stored["offsets"], stored["metadata"])


def _compact(
    keys: list[str],
    fields: dict[str, Field],
    offsets: Mapping[str, Sequence[int]],
    metadata: Sequence[Sequence[int]],
) -> ShardIndex:
    arrays = {name: np.asarray(places, np.int64) for name, places in offsets.items()}
    return ShardIndex(keys, fields, arrays, np.asarray(metadata, np.int64).reshape(-1, 2))


def _crc32(descriptor: int, start: int, end: int) -> int:
    checksum = 0
    while start < end:
        data = os.pread(descriptor, min(CHUNK, end - start), start)
        if not data:
            return -1  # the file ends inside the sample
        checksum = zlib.crc32(data, checksum)
        start += len(data)
    return checksum
