"""Run a function on untrusted files in sandboxed processes.

    for item, outcome in map_isolated("fvlm.video.probe:probe_request", [{"path": "a.mp4"}]):
        if isinstance(outcome, VideoError):
            ...  # outcome.reason is one of fvlm.video.reasons.Reason
        else:
            ...  # outcome.values: dict, outcome.arrays: dict of numpy arrays

`function` is "module:name" or a top-level function. It takes one JSON object and returns a JSON
object, or a pair (JSON object, {name: numpy array}); it may raise VideoError to refuse an item.

Each worker is a fresh interpreter in its own session, with limits on address space, processor
time, file size and open files. Items and results cross its pipes as length-prefixed JSON and raw
bytes, never as pickles. A worker that is late is ended with SIGKILL, and its process group with
it: a spinning decoder ignores anything weaker. Workers die with the thread that consumes the
results. What a worker prints is kept out of the protocol and quoted when it dies.
"""

import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import numpy as np

from fvlm.core.errors import VideoError
from fvlm.video.reasons import Reason
from fvlm.video.sandbox import PREFIX, READY, encode_header

DEADLINE_SECONDS = 60.0  # wall clock, per item
START_SECONDS = 60.0  # wall clock, until a worker is ready for its first item: a busy disk
MEMORY_BYTES = 2 * 2**30  # address space of one worker
ITEMS_PER_WORKER = 500  # then it is replaced, so that no leak adds up
AHEAD = 16  # results per worker that may wait for an earlier one, in order
EXIT_SECONDS = 1.0  # from the end of a worker's output to the end of its process
READ_BYTES = 2**20
HEADER_BYTES = 2**24  # largest JSON of a result

BOOT = """
import json, sys
path, parent, function, deadline_seconds, memory_bytes = sys.argv[1:]
sys.path[:] = json.loads(path)
from fvlm.video.sandbox import serve
serve(int(parent), function, float(deadline_seconds), int(memory_bytes))
"""

Item = TypeVar("Item", bound=dict[str, Any])


@dataclass(frozen=True)
class Outcome:
    """What the function returned for one item."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


def map_isolated(
    function: str | Callable[[dict[str, Any]], Any],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    in_order: bool = False,
    deadline_seconds: float = DEADLINE_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Generator[tuple[Item, Outcome | VideoError], None, None]:
    """Yield (item, outcome) for every item, as they finish or `in_order` of the items.

    `workers` defaults to the processor cores at hand. At most one result per worker is in flight,
    and in order at most AHEAD per worker wait for an earlier one, so memory does not grow with the
    number of items. A worker that dies or is late costs its item (VideoError crashed, timeout or
    out_of_memory) and is replaced. Time that the caller spends between two results does not count
    against any deadline.
    """
    name = function if isinstance(function, str) else f"{function.__module__}:{function.__name__}"
    pool = _Pool(name, deadline_seconds, memory_bytes)
    count = workers or len(os.sched_getaffinity(0))
    most = count * AHEAD if in_order else sys.maxsize  # items begun and not delivered
    waiting, begun, delivered = iter(items), 0, 0
    early: dict[int, tuple[Item, Outcome | VideoError]] = {}
    try:
        while True:
            while len(pool.busy) < count and begun - delivered < most:
                if (item := next(waiting, None)) is None:
                    break
                pool.start(begun, item)
                begun += 1
            if not pool.busy:
                return
            for number, *result in pool.wait():
                early[number if in_order else delivered] = (result[0], result[1])
                while delivered in early:
                    delivered += 1
                    paused = time.monotonic()
                    yield early.pop(delivered - 1)
                    pool.forgive(time.monotonic() - paused)
    finally:
        pool.close()


def peak_memory_gib() -> float:
    """An upper bound of resident memory so far: this process, and a worker for each core.

    All workers count as the largest child process that has ended.
    """
    own, largest = (
        resource.getrusage(who).ru_maxrss  # KiB
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return (own + largest * len(os.sched_getaffinity(0))) / 2**20


class _Pool:
    """Idle and busy workers; `start` gives an item to one, `wait` collects what has finished."""

    def __init__(self, function: str, deadline_seconds: float, memory_bytes: int) -> None:
        self._arguments = (function, deadline_seconds, memory_bytes)
        self._memory_bytes = memory_bytes
        self._idle: deque[_Worker] = deque()
        self.busy: set[_Worker] = set()
        self._selector = selectors.DefaultSelector()

    def start(self, number: int, item: Any) -> None:
        worker = self._idle.popleft() if self._idle else None
        if worker is None or not worker.send(item):
            if worker is not None:
                worker.kill()  # died while idle: the next item is not to blame
            worker = _Worker(*self._arguments)
            worker.send(item)
        worker.number = number
        self.busy.add(worker)
        self._selector.register(worker.replies, selectors.EVENT_READ, worker)

    def wait(self) -> Iterator[tuple[int, Any, Outcome | VideoError]]:
        """Block until something happens; yield number, item, outcome of what is done."""
        timeout = min(worker.deadline for worker in self.busy) - time.monotonic()
        ready = [key.data for key, _ in self._selector.select(max(timeout, 0))]
        for worker in ready:
            outcome = worker.receive(self._memory_bytes)
            if outcome is not None:
                self._release(worker)
                yield worker.number, worker.item, outcome
        for worker in [worker for worker in self.busy if worker not in ready]:
            if worker in self.busy and time.monotonic() >= worker.deadline:
                worker.kill()
                self._release(worker)
                yield worker.number, worker.item, VideoError(Reason.TIMEOUT, worker.lateness)

    def forgive(self, seconds: float) -> None:
        """Do not count time during which nobody listened."""
        for worker in self.busy:
            worker.deadline += seconds

    def close(self) -> None:
        for worker in [*self.busy, *self._idle]:
            worker.kill()
        self._selector.close()

    def _release(self, worker: "_Worker") -> None:
        self.busy.discard(worker)
        self._selector.unregister(worker.replies)
        if worker.is_usable:
            self._idle.append(worker)
        else:
            worker.kill()


class _Worker:
    """One process, its pipes, and the reply that is arriving."""

    def __init__(self, function: str, deadline_seconds: float, memory_bytes: int) -> None:
        path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109
        self._stderr: IO[bytes] = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - closed by kill()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-c", BOOT, json.dumps(path), str(os.getpid())),
                *(function, str(deadline_seconds), str(memory_bytes)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self.replies = self._process.stdin, self._process.stdout
        os.set_blocking(self.replies.fileno(), False)
        self.number = 0
        self.item: Any = None
        self.deadline = math.inf
        self._deadline_seconds = deadline_seconds
        self._is_ready = False
        self._served = 0
        self._reply = _Reply()
        self._is_alive = True

    @property
    def is_usable(self) -> bool:
        return self._is_alive and self._served < ITEMS_PER_WORKER

    @property
    def lateness(self) -> str:
        """What to say when the deadline has passed."""
        if self._is_ready:
            return f"no result after {self._deadline_seconds:g} seconds"
        return f"the worker was not ready after {START_SECONDS:g} seconds"

    def send(self, item: Any) -> bool:
        """Hand over an item; False when the worker is dead."""
        self.item, self._reply = item, _Reply()
        seconds = self._deadline_seconds if self._is_ready else START_SECONDS
        self.deadline = time.monotonic() + seconds
        self._served += 1
        try:
            self._requests.write(encode_header(item))
            self._requests.flush()
        except BrokenPipeError:
            return False
        return True

    def receive(self, limit_bytes: int) -> Outcome | VideoError | None:
        """Take in what has arrived; the outcome when it is complete or the worker has died."""
        while True:
            chunk = self._read(self._reply.missing if self._is_ready else len(READY))
            if chunk is None:
                return None
            if not chunk:
                self._is_alive = False
                return self._death()
            if not self._is_ready:
                self._is_ready = True
                self.deadline = time.monotonic() + self._deadline_seconds
                continue
            try:
                complete = self._reply.add(chunk, limit_bytes)
                outcome = self._reply.outcome() if complete else None
            except (ValueError, KeyError, TypeError) as error:
                self._is_alive = False
                return VideoError(Reason.CRASHED, f"the worker's reply makes no sense: {error}")
            if outcome is not None:
                self._is_alive = getattr(outcome, "reason", "") != Reason.OUT_OF_MEMORY
                return outcome

    def kill(self) -> None:
        """End the process group and collect the process; safe to call twice."""
        self._is_alive = False
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.replies.close()
        self._stderr.close()
        with suppress(BrokenPipeError):
            self._requests.close()

    def _read(self, size: int) -> bytes | None:
        try:
            return os.read(self.replies.fileno(), min(size, READ_BYTES))
        except BlockingIOError:
            return None

    def _death(self) -> VideoError:
        """Why the worker closed its pipe without a result."""
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:  # closed its pipe, but goes on
            return VideoError(Reason.CRASHED, "the worker stopped answering")
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1][:200]}" if lines else ""
        if code == -signal.SIGXCPU:
            return VideoError(Reason.TIMEOUT, f"used up its processor time{said}")
        if any("MemoryError" in line or "bad_alloc" in line for line in lines[-3:]):
            return VideoError(Reason.OUT_OF_MEMORY, f"the worker ran out of memory{said}")
        ended = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        return VideoError(Reason.CRASHED, f"the worker died: {ended}{said}")


class _Reply:
    """A message that arrives in pieces: prefix, JSON header, then the bytes of its arrays."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._payload = bytearray()
        self._sizes: tuple[int, int] | None = None  # bytes of header and payload

    @property
    def missing(self) -> int:
        """How many bytes may be read without running into the next message."""
        if self._sizes is None:
            return PREFIX.size - len(self._header)
        return sum(self._sizes) - len(self._header) - len(self._payload)

    def add(self, chunk: bytes, limit_bytes: int) -> bool:
        """Take in one piece; True when the message is complete. Raises ValueError on nonsense."""
        if self._sizes is None:
            self._header += chunk
            if len(self._header) == PREFIX.size:
                self._sizes = PREFIX.unpack(self._header)
                header_bytes, payload_bytes = self._sizes
                if not 0 < header_bytes <= HEADER_BYTES or payload_bytes > limit_bytes:
                    raise ValueError(f"{header_bytes} + {payload_bytes} bytes are announced")
                self._header.clear()
            return False
        rest = self._sizes[0] - len(self._header)
        self._header += chunk[:rest]
        self._payload += chunk[rest:]
        return self.missing == 0

    def outcome(self) -> Outcome | VideoError:
        """Decode the complete message; arrays share its memory."""
        header = json.loads(self._header)
        if "reason" in header:
            return VideoError(header["reason"], header["message"])
        arrays, offset = {}, 0
        for facts in header["arrays"]:
            dtype, shape = np.dtype(facts["dtype"]), tuple(facts["shape"])
            size = math.prod(shape)
            array = np.frombuffer(self._payload, dtype, size, offset).reshape(shape)
            arrays[facts["name"]] = array
            offset += array.nbytes
        return Outcome(header["values"], arrays)
