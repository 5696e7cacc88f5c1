"""Shards: WebDataset tar files whose bytes depend on their samples only.

A sample is a key and named fields: `{key}.frames.npy` holds an array, `{key}.json` its metadata.
Time, owner, mode, order and format of the tar entries are fixed, JSON is canonical, so the same
samples give the same bytes on every machine.
"""

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from fvlm.core.document import Document
from fvlm.core.errors import ShardError
from fvlm.core.io import KEY, atomic_write

FIELD = re.compile(r"[a-z0-9_]{1,13}\.npy|json")  # key + field fit into the 100 bytes of USTAR

Fields = Mapping[str, Any]
Sample = tuple[str, Fields]


class ShardFacts(Document):
    """What a written shard is: size, digests (hex), number of samples, one CRC-32 a sample.

    `sample_crc32` joins 8 hex digits a sample, over all tar bytes of that sample in shard order. It
    names the sample when the shard's sha256 does not match.
    """

    bytes: int
    sha256: str
    md5: str
    samples: int
    sample_crc32: str


def write_shard(path: Path, samples: Iterable[Sample]) -> ShardFacts:
    """Write samples in the given order to a tar file that appears under `path` only when whole.

    samples: (key, {"NAME.npy": array, "json": JSON value}) pairs, consumed one at a time.
    Raises ShardError for an invalid or repeated key, an invalid field, or no sample at all.
    """
    keys: set[str] = set()
    checksums: list[int] = []
    with atomic_write(path) as file:
        output = _HashingWriter(file)
        for key, fields in samples:
            if not KEY.fullmatch(key) or key in keys:
                fault = "repeated" if key in keys else f"invalid (expected {KEY.pattern})"
                raise ShardError(f"{path}: sample key {key!r} is {fault}")
            keys.add(key)
            output.crc32 = 0
            for name, value in fields.items():
                if not FIELD.fullmatch(name):
                    raise ShardError(f"{path}: sample {key}: expected NAME.npy or json, got {name}")
                _write_member(output, f"{key}.{name}", _encode(path, key, name, value))
            checksums.append(output.crc32)
        if not keys:
            raise ShardError(f"{path}: a shard needs at least one sample")
        output.write(bytes(2 * tarfile.BLOCKSIZE))
        output.write(bytes(-output.bytes % tarfile.RECORDSIZE))
    return ShardFacts(
        bytes=output.bytes,
        sha256=output.sha256.hexdigest(),
        md5=output.md5.hexdigest(),
        samples=len(keys),
        sample_crc32="".join(f"{checksum:08x}" for checksum in checksums),
    )


class _HashingWriter:
    """Digests bytes on their way into a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.md5 = hashlib.md5(usedforsecurity=False)  # DVC's name of the object
        self.crc32 = 0
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.sha256.update(data)
        self.md5.update(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self.bytes += len(data)


def _write_member(output: _HashingWriter, name: str, parts: list[bytes | memoryview]) -> None:
    size = sum(len(part) for part in parts)
    output.write(_tar_header(name, size) + parts[0])
    for part in parts[1:]:
        output.write(part)
    output.write(bytes(-size % tarfile.BLOCKSIZE))


def _tar_header(name: str, size: int) -> bytes:
    """What `tarfile` makes of the name; it takes four times as long."""
    header, checksum = _nameless_header(size)
    encoded = name.encode()
    checksum += sum(encoded)
    return b"%b%b%06o%b" % (encoded, header[len(encoded) : 148], checksum, header[154:])


@lru_cache(1024)
def _nameless_header(size: int) -> tuple[bytes, int]:
    """The tar header of a file of so many bytes, without its name, and the checksum in it."""
    header = tarfile.TarInfo()  # mtime, uid and gid 0, no owner names, a regular file
    header.size, header.mode = size, 0o644
    block = header.tobuf(format=tarfile.USTAR_FORMAT)
    return block, int(block[148:154], 8)


def _encode(path: Path, key: str, name: str, value: Any) -> list[bytes | memoryview]:
    if name == "json":
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return [text.encode()]
    array = np.asarray(value, order="C")
    if array.dtype.hasobject or array.dtype.fields is not None:
        raise ShardError(f"{path}: sample {key}: {name}: cannot store dtype {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return [_npy_header(array.dtype, array.shape), array.reshape(-1).view(np.uint8).data]


@lru_cache
def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What stands before the data of a C-contiguous array."""
    descr = np.lib.format.dtype_to_descr(dtype)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return header.getvalue()
