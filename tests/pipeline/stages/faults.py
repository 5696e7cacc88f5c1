"""Faults for the crash tests: the k-th operation of a kind kills the process or fails."""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from typing import Any

KINDS = {
    "open": [(io, "open")],
    "write": [],
    "fsync": [(os, "fsync")],
    "rename": [(os, "replace"), (os, "rename")],
    "link": [(os, "link")],
    "remove": [(os, "unlink"), (os, "rmdir"), (os, "mkdir")],
}


class Faults:
    """Counts operations by kind; the `at`-th one of `kind` is hit, a write half way through.

    `full`: the disk is full from then on. Operations of processes that are forked later are their
    own affair.
    """

    def __init__(
        self, kind: str = "", at: int = 0, *, kill: bool = True, full: bool = False
    ) -> None:
        self.counts = dict.fromkeys(KINDS, 0)
        self._kind, self._at, self._kill, self._full = kind, at, kill, full
        self._pid = os.getpid()

    def install(self) -> None:
        """Patch this process for good: for forked children only."""
        for kind, functions in KINDS.items():
            for module, name in functions:
                setattr(module, name, self._wrap(kind, getattr(module, name)))
        builtins.open = io.open

    def hit(self, kind: str) -> bool:
        if os.getpid() != self._pid:
            return False
        self.counts[kind] += 1
        count = self.counts[kind]
        return kind == self._kind and (count >= self._at if self._full else count == self._at)

    def strike(self) -> None:
        if self._full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(5, "injected fault")

    def _wrap(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*args: Any, **kwargs: Any) -> Any:
            if self.hit(kind):
                self.strike()
            result = function(*args, **kwargs)
            is_file = kind == "open" and not isinstance(args[0], int)  # a number: a pipe
            return _File(result, self) if is_file else result

        return faulty


class _File:
    """A file whose writes are counted; the hit one gets only half of its bytes to the disk."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Any:
        return iter(self._file)

    def __enter__(self) -> "_File":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def write(self, data: Any) -> Any:
        if self._faults.hit("write"):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._faults.strike()
        return self._file.write(data)
