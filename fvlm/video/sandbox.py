"""The worker's side of `fvlm.video.worker`: limits, the message format, and the serving loop.

A message is two big-endian lengths (JSON, raw bytes), then the JSON, then the bytes of its arrays
one after the other. With a request comes the descriptor of the file that it names as "path". A
worker's first message tells which protection is in force. Imports as little as possible: one runs
in every worker.
"""

import ctypes
import importlib
import json
import math
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fvlm.core.errors import VideoError
from fvlm.video.confine import confine
from fvlm.video.files import handed
from fvlm.video.reasons import Reason

PROCESSOR_SECONDS = 60.0  # per item that names no other `processor_seconds`
SLOWEST = 4.0  # seconds of processor time that decoding a second of video may take
PREFIX = struct.Struct(">QQ")  # bytes of JSON, bytes of arrays
STDERR_BYTES = 2**20  # what decoders may print for one item
OPEN_FILES = 64
MESSAGE_CHARACTERS = 2000

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def seconds_to_decode(seconds: float) -> float:
    """Processor time that an item may take of which so many seconds of video are decoded."""
    return PROCESSOR_SECONDS + SLOWEST * seconds


def encode_header(header: dict[str, Any], payload_bytes: int = 0) -> bytes:
    """The first part of a message; `payload_bytes` of raw array bytes follow it."""
    text = json.dumps(header).encode()
    return PREFIX.pack(len(text), payload_bytes) + text


def decode_arrays(described: list[dict[str, Any]], payload: bytearray) -> dict[str, np.ndarray]:
    """The arrays of a message by name, in the memory of its raw bytes."""
    arrays, offset = {}, 0
    for facts in described:
        dtype, shape = np.dtype(facts["dtype"]), tuple(facts["shape"])
        array = np.frombuffer(payload, dtype, math.prod(shape), offset).reshape(shape)
        arrays[facts["name"]] = array
        offset += array.nbytes
    return arrays


def serve(
    descriptor: int, parent: int, function: str, processor_seconds: float, memory_bytes: int
) -> None:
    """Answer requests until the parent closes the socket. Runs in a fresh interpreter."""
    _die_with_parent(parent)
    _limit(memory_bytes)
    call = _load(function)
    with socket.socket(fileno=descriptor) as channel:
        channel.sendall(encode_header({"protection": confine()}))
        while (received := _receive(channel)) is not None:
            request, file = received
            os.truncate(2, 0)  # stderr holds what concerns this item only
            os.lseek(2, 0, os.SEEK_SET)
            _limit_processor(request.get("processor_seconds", processor_seconds))
            with handed(request.get("path"), file):
                header, arrays = _answer(call, request)
            channel.sendall(header)
            for array in arrays:
                channel.sendall(array.data)


def _receive(channel: socket.socket) -> tuple[dict[str, Any], int | None] | None:
    """The next request and the video's descriptor; None when the parent has closed the socket."""
    prefix, descriptors, _, _ = socket.recv_fds(channel, PREFIX.size, 1)
    if len(prefix) < PREFIX.size:
        return None
    length, _ = PREFIX.unpack(prefix)
    text = b""
    while len(text) < length:
        text += channel.recv(length - len(text))
    return json.loads(text), descriptors[0] if descriptors else None


def _answer(
    call: Callable[[dict[str, Any]], Any], request: dict[str, Any]
) -> tuple[bytes, list[Any]]:
    """The reply's first part and its contiguous arrays; every failure becomes a typed one."""
    try:
        result = call(request)
        values, arrays = result if isinstance(result, tuple) else (result, {})
        described = [
            {"name": name, "dtype": array.dtype.str, "shape": array.shape}
            for name, array in arrays.items()
        ]
        contiguous = [np.ascontiguousarray(array) for array in arrays.values()]
        # A result that is not JSON is this item's failure, too.
        header = encode_header(
            {"values": values, "arrays": described}, sum(array.nbytes for array in contiguous)
        )
    except VideoError as error:
        return _failure(error.reason, str(error)), []
    except MemoryError as error:
        return _failure(Reason.OUT_OF_MEMORY, f"memory limit reached {error}".strip()), []
    except BaseException as error:
        return _failure(Reason.CRASHED, f"{type(error).__name__}: {error}"), []
    return header, contiguous


def _failure(reason: str, message: str) -> bytes:
    return encode_header({"reason": str(reason), "message": message[:MESSAGE_CHARACTERS]})


def _load(function: str) -> Callable[[dict[str, Any]], Any]:
    """The function named `module:name`."""
    module, _, name = function.partition(":")
    call: Callable[[dict[str, Any]], Any] = getattr(importlib.import_module(module), name)
    return call


def _die_with_parent(parent: int) -> None:
    """Ask Linux for SIGKILL when the parent ends; leave at once if it already has.

    Elsewhere the closed socket ends the worker, after the item at hand.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _limit(memory_bytes: int) -> None:
    limits = {
        resource.RLIMIT_FSIZE: STDERR_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # macOS reserves more address space than any limit
        limits[resource.RLIMIT_AS] = memory_bytes
    for kind, wanted in limits.items():
        limit, _ = _at_most(kind, wanted)
        resource.setrlimit(kind, (limit, limit))


def _limit_processor(seconds: float) -> None:
    """Allow this item `seconds` of processor time on top of what was used before."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, _at_most(resource.RLIMIT_CPU, soft))


def _at_most(kind: int, wanted: int) -> tuple[int, int]:
    """A soft limit, lower than wanted where the user's own (`ulimit`) is; and the hard one."""
    _, hard = resource.getrlimit(kind)
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard
