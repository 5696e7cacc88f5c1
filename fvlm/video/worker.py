"""Run a function on untrusted files in sandboxed processes.

    for item, outcome in map_isolated("fvlm.video.probe:probe_request", [{"path": "a.mp4"}]):
        ...  # a VideoError, or an Outcome: values: dict, arrays: dict of numpy arrays

`function` is "module:name" or a top-level function. It takes one JSON object and returns a JSON
object, or a pair (JSON object, {name: numpy array}); it may raise VideoError to refuse an item.

Each worker is a fresh interpreter in its own session that may read the item's file and nothing else
(`fvlm.video.confine`), with limits on address space, processor time, file size and open files. A
thread for each worker waits for its answers. Items and results cross a socket as length-prefixed
JSON and raw bytes, never as pickles. Processor time decides what takes too long; wall clock only
ends what does nothing, with SIGKILL for the whole process group: a spinning decoder ignores
anything weaker. A late item is tried once more while no other runs. Workers die with the thread
that started them. What a worker prints is quoted when it dies.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO, Any, TypeVar

import numpy as np

from fvlm.core.errors import FvlmError, VideoError
from fvlm.core.identity import edited
from fvlm.core.machine import core_count
from fvlm.video.files import open_regular
from fvlm.video.reasons import Reason
from fvlm.video.sandbox import PREFIX, PROCESSOR_SECONDS, decode_arrays, encode_header

WALL_CLOCK_TIMES = 10  # as much wall clock: a machine that does other work, a slow disk
START_SECONDS = 600.0  # wall clock, until a worker is ready for its first item: a busy disk
MEMORY_BYTES = 2 * 2**30  # address space of one worker
ITEMS_PER_WORKER = 500  # then it is replaced, so that no leak adds up
AHEAD = 16  # items per worker that may be begun and not delivered, in order
EXIT_SECONDS = 1.0  # from the end of a worker's output to the end of its process
HEADER_BYTES = 2**24  # largest JSON of a result

BOOT = """
import json, sys
path, parent, descriptor, function, processor_seconds, memory_bytes = sys.argv[1:]
sys.path[:] = json.loads(path)
from fvlm.video.sandbox import serve
serve(int(descriptor), int(parent), function, float(processor_seconds), int(memory_bytes))
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
    processor_seconds: float = PROCESSOR_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Generator[tuple[Item, Outcome | VideoError], None, None]:
    """As `Workers.map`, by workers that live as long as this does."""
    with Workers(
        function, workers, processor_seconds=processor_seconds, memory_bytes=memory_bytes
    ) as pool:
        yield from pool.map(items, in_order=in_order)


class Workers:
    """Worker processes with a thread each, which serve any number of threads.

    `count`: by default the cores at hand. When they end, who waits for a result gets RuntimeError.
    """

    def __init__(
        self,
        function: str | Callable[[dict[str, Any]], Any],
        count: int | None = None,
        *,
        processor_seconds: float = PROCESSOR_SECONDS,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if not isinstance(function, str):
            function = f"{function.__module__}:{function.__name__}"
        self.count = count or core_count()
        self._arguments = (function, processor_seconds, memory_bytes)
        self._tasks: SimpleQueue[Any] = SimpleQueue()  # (results, number, item); None ends a thread
        self._workers: set[_Worker] = set()
        self._lock, self._reserving = threading.Lock(), threading.Lock()
        self._slots = threading.Semaphore(self.count)
        self._is_closed = False
        # Daemons: an exception that ends the program does not wait for videos.
        self._threads = [
            threading.Thread(target=self._serve, daemon=True) for _ in range(self.count)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; a thread that waits for one sees its socket close."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for worker in self._workers:
                worker.kill()
        for _thread in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def map(
        self, items: Iterable[Item], *, in_order: bool = False, most: int | None = None
    ) -> Generator[tuple[Item, Outcome | VideoError], None, None]:
        """Yield (item, outcome) for every item, as they finish or `in_order` of the items.

        The function may read the file that an item names as "path", and no other; an item's
        "processor_seconds" are its limit. `most` items are begun and not delivered, by default two
        per worker, in order AHEAD. A worker that dies or is late costs its item (VideoError).
        """
        most = most or self.count * (AHEAD if in_order else 2)
        results: SimpleQueue[Any] = SimpleQueue()  # (number, item, outcome or exception)
        waiting, begun, delivered = iter(items), 0, 0
        early: dict[int, tuple[Item, Outcome | VideoError]] = {}
        while True:
            while begun - delivered < most and (item := next(waiting, None)) is not None:
                with self._lock:
                    self._check_open()
                    self._tasks.put((results, begun, item))
                begun += 1
            if begun == delivered:
                return
            number, item, outcome = results.get()
            if not isinstance(outcome, (Outcome, VideoError)):
                raise outcome
            early[number if in_order else delivered] = (item, outcome)
            while delivered in early:
                delivered += 1
                yield early.pop(delivered - 1)

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("nobody waits for this result any more")

    def _serve(self) -> None:
        worker: _Worker | None = None
        while (task := self._tasks.get()) is not None:
            results, number, item = task
            outcome: Any
            try:
                with self._slots:
                    worker = self._usable(worker)
                    outcome = worker.answer(item)
                if getattr(outcome, "reason", "") == Reason.TIMEOUT and not self._is_closed:
                    with self._all_slots():
                        worker = self._usable(worker)
                        outcome = worker.answer(item)
                self._check_open()  # a worker that was killed says nothing of its item
            except BaseException as error:  # raised where the result is taken
                outcome = error
            results.put((number, item, outcome))
        if worker is not None:
            worker.close()

    def _usable(self, worker: "_Worker | None") -> "_Worker":
        """The same worker; a new one where it has died, even if it was idle."""
        self._check_open()
        if worker is not None and worker.is_usable:
            return worker
        with self._lock:
            if worker is not None:
                self._workers.discard(worker)
                worker.close()
            self._check_open()
            if modules := edited(self._arguments[0]):
                raise FvlmError(
                    f"{modules[0]} was edited while this ran, and what a new process makes would "
                    "be taken for the old code's: run it again; what is finished is handed back"
                )
            worker = _Worker(*self._arguments)
            self._workers.add(worker)
        return worker

    @contextmanager
    def _all_slots(self) -> Iterator[None]:
        """While this holds, no other item runs."""
        with self._reserving:
            for _ in range(self.count):
                self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release(self.count)


class _Worker:
    """One process and the socket that leads to it; used by one thread, killed by any."""

    def __init__(self, function: str, processor_seconds: float, memory_bytes: int) -> None:
        path = [entry or os.getcwd() for entry in sys.path]  # noqa: PTH109
        self._seconds, self._memory_bytes = processor_seconds, memory_bytes
        self._stderr: IO[bytes] = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - close() does
        self._channel, theirs = socket.socketpair()
        with theirs:
            numbers = (str(os.getpid()), str(theirs.fileno()))
            limits = (str(processor_seconds), str(memory_bytes))
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", BOOT, json.dumps(path), *numbers, function, *limits],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._is_ready, self._is_alive, self._served = False, True, 0

    @property
    def is_usable(self) -> bool:
        is_running = self._is_alive and self._process.poll() is None
        return is_running and self._served < ITEMS_PER_WORKER

    def answer(self, item: dict[str, Any]) -> Outcome | VideoError:
        """What the worker makes of the item; it is not usable any more where that went wrong."""
        self._served += 1
        self._allowed = item.get("processor_seconds", self._seconds)
        outcome: Outcome | VideoError
        try:
            if not self._is_ready:
                late = f"the worker was not ready after {START_SECONDS:g} seconds"
                header, _ = self._receive(time.monotonic() + START_SECONDS)
                _announce(header["protection"])
                self._is_ready = True
            wall_clock = WALL_CLOCK_TIMES * self._allowed
            late = f"no result after {wall_clock:g} seconds"
            self._send(item)
            outcome = _outcome(*self._receive(time.monotonic() + wall_clock))
        except TimeoutError:
            outcome = VideoError(Reason.TIMEOUT, late)
        except (EOFError, ConnectionError):
            outcome = self._death()
        except (ValueError, KeyError, TypeError) as error:
            outcome = VideoError(Reason.CRASHED, f"the worker's reply makes no sense: {error}")
        else:
            if getattr(outcome, "reason", "") != Reason.OUT_OF_MEMORY:
                return outcome
        self._is_alive = False
        self.kill()
        return outcome

    def kill(self) -> None:
        """End the process group; safe to call twice, and from another thread."""
        with suppress(ProcessLookupError, PermissionError):  # macOS says so of dead ones
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End and collect the process."""
        self.kill()
        self._process.wait()
        self._channel.close()
        self._stderr.close()

    def _send(self, item: dict[str, Any]) -> None:
        """The request, and the file that it names, by its descriptor."""
        message, file = encode_header(item), open_regular(item.get("path"))
        try:
            sent = socket.send_fds(self._channel, [message], [] if file is None else [file])
            self._channel.sendall(message[sent:])
        finally:
            if file is not None:
                os.close(file)

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytearray]:
        """One message: its JSON and the bytes of its arrays.

        Raises TimeoutError, EOFError when the worker has closed the socket, ValueError on nonsense.
        """
        self._channel.settimeout(max(deadline - time.monotonic(), 0.001))
        header_bytes, payload_bytes = PREFIX.unpack(self._read(PREFIX.size, deadline))
        if not 0 < header_bytes <= HEADER_BYTES or payload_bytes > self._memory_bytes:
            raise ValueError(f"{header_bytes} + {payload_bytes} bytes are announced")
        header = json.loads(self._read(header_bytes, deadline))
        return header, self._read(payload_bytes, deadline)

    def _read(self, size: int, deadline: float) -> bytearray:
        data, place = bytearray(size), 0
        while place < size:
            count = self._channel.recv_into(memoryview(data)[place:])
            if count == 0:
                raise EOFError
            place += count
            if time.monotonic() > deadline:
                raise TimeoutError
        return data

    def _death(self) -> VideoError:
        """Why the worker closed its socket without a result."""
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:  # closed its socket, but goes on
            return VideoError(Reason.CRASHED, "the worker stopped answering")
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1][:200]}" if lines else ""
        if code == -signal.SIGXCPU:
            used = f"used up its {self._allowed:g} seconds of processor time{said}"
            return VideoError(Reason.TIMEOUT, used)
        if any("MemoryError" in line or "bad_alloc" in line for line in lines[-3:]):
            return VideoError(Reason.OUT_OF_MEMORY, f"the worker ran out of memory{said}")
        ended = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        return VideoError(Reason.CRASHED, f"the worker died: {ended}{said}")


def _outcome(header: dict[str, Any], payload: bytearray) -> Outcome | VideoError:
    """Decode a complete reply; arrays share its memory."""
    if "reason" in header:
        return VideoError(header["reason"], header["message"])
    return Outcome(header["values"], decode_arrays(header["arrays"], payload))


_announced: set[str] = set()


def _announce(protection: str) -> None:
    """Say once in a run what keeps the workers from doing harm."""
    if protection not in _announced:
        _announced.add(protection)
        print(f"videos are opened in processes confined by {protection}", file=sys.stderr)
