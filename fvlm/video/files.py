"""Read a file of unknown origin by a descriptor, which somebody else may have opened.

A sandboxed worker may open no file; its parent opens the one video and hands the descriptor over.
Readers have positions of their own, so that several can read the same descriptor.
"""

import hashlib
import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fvlm.core.errors import VideoError
from fvlm.video.reasons import Reason

_handed: dict[str, int] = {}  # path: descriptor, in a worker


def open_regular(path: Any) -> int | None:
    """A descriptor of a regular file; None for everything else, which is not touched."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - names need not be UTF-8
            return None
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def handed(path: Any, descriptor: int | None) -> Iterator[None]:
    """Read `path` by this descriptor, which is closed in the end; None: open it where needed."""
    if descriptor is None:
        yield
        return
    _handed[path] = descriptor
    try:
        yield
    finally:
        del _handed[path]
        os.close(descriptor)


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor to `os.pread` from; raises VideoError: not_a_file, empty_file."""
    try:
        facts = os.stat(_handed.get(path, path))  # noqa: PTH116
    except (OSError, ValueError) as error:
        raise VideoError(Reason.NOT_A_FILE, f"{path}: {error}") from None
    if not stat.S_ISREG(facts.st_mode):
        raise VideoError(Reason.NOT_A_FILE, f"{path} is not a regular file")
    if facts.st_size == 0:
        raise VideoError(Reason.EMPTY_FILE, f"{path} is empty")
    if path in _handed:
        yield _handed[path]
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise VideoError(Reason.NOT_A_FILE, f"{path}: {error}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Reader(io.RawIOBase):
    """A file object over a descriptor, with a position of its own; `name` is the file's."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self._descriptor, self._position = descriptor, 0
        self._size = os.fstat(descriptor).st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._position if size < 0 else size
        data = os.pread(self._descriptor, max(left, 0), self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position


def content_sha256(path: str) -> str:
    """Hex sha256 of the file; raises VideoError: not_a_file, empty_file."""
    with opened(path) as descriptor:
        digest, position = hashlib.sha256(), 0
        while data := os.pread(descriptor, 2**20, position):
            digest.update(data)
            position += len(data)
    return digest.hexdigest()


def check_content(request: Mapping[str, Any]) -> str:
    """The path of a request; raises VideoError when the file's content is not `sha256`."""
    path: str = request["path"]
    found = content_sha256(path)
    if found != request["sha256"]:
        message = f"{path}: sha256 {found}, the filter saw {request['sha256']}"
        raise VideoError(Reason.CHANGED_SINCE_FILTER, message)
    return path
