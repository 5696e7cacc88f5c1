"""What the tests run inside workers; imported there by name."""

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fvlm.errors import VideoError
from fvlm.video.codec import play
from fvlm.video.container import STRICT, open_stream
from fvlm.video.geometry import FrameConverter
from fvlm.video.timeline import read_timeline


def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {**request, "pid": os.getpid()}


def arrays(request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    value = request["value"]
    frames = np.full((3, request["size"]), value, np.uint8)
    return {"value": value}, {"frames": frames, "turned": np.arange(6.0).reshape(2, 3).T}


def limits(_: dict[str, Any]) -> dict[str, Any]:
    names = ("AS", "FSIZE", "NOFILE", "CORE", "CPU")
    return {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in names}


def threads(request: dict[str, Any]) -> dict[str, Any]:
    """The most threads that this process has while it decodes and converts."""
    converter, counts = FrameConverter(32, None), []
    with open_stream(request["path"], STRICT) as (container, stream):
        timeline = read_timeline(request["path"], container, stream)
        for _, frame in play(timeline, stream):
            converter.convert(frame)
            counts.append(len(list(Path("/proc/self/task").iterdir())))
    return {"most": max(counts)}


def misbehave(request: dict[str, Any]) -> Any:
    match request["how"]:
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "leave":
            os._exit(3)
        case "exit":
            raise SystemExit(3)
        case "spin":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU):
                signal.signal(number, signal.SIG_IGN)
            _spin()
        case "use up":
            _spin()
        case "fork":
            if os.fork() == 0:
                _spin()
            _spin()
        case "memory":
            _fill_memory()
        case "refuse":
            raise VideoError("unreadable", "no such thing")
        case "type":
            raise TypeError("a bug")
        case "not json":
            return {"value": object()}
        case "print":
            print("noise " * 100_000, flush=True)
            os.write(1, b"\0" * 100_000)
            os.write(2, b"more noise" * 1000)
        case "large file":
            with open(request["path"], "wb") as file:  # noqa: PTH123
                file.write(bytes(2**24))
        case "sleep":
            time.sleep(request["seconds"])
    return {"how": request["how"]}


def _spin() -> NoReturn:
    while True:
        pass


def _fill_memory() -> NoReturn:
    hoard = []
    while True:
        hoard.append(bytearray(2**26))


def nonsense(request: dict[str, Any]) -> NoReturn:
    """Write garbage over the protocol, as a hijacked worker might."""
    for descriptor in range(3, 10):
        try:
            os.write(descriptor, bytes.fromhex(request["hex"]))
        except OSError:
            continue
    _spin()
