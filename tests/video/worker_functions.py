"""What the tests run inside workers; imported there by name, before the worker is confined."""

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fvlm.core.errors import VideoError
from fvlm.video.codec import play
from fvlm.video.container import STRICT, open_stream
from fvlm.video.files import opened
from fvlm.video.geometry import FrameConverter
from fvlm.video.timeline import read_timeline

TASKS = os.open("/proc/self/task", os.O_RDONLY)
LOG = os.environ.get("WORKER_LOG")
LOG_FILE = os.open(LOG, os.O_RDWR | os.O_APPEND) if LOG else -1


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
            counts.append(len(list(os.scandir(TASKS))))
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
        case "large print":
            for _ in range(2**4):
                os.write(2, bytes(2**20))
            raise AssertionError("nothing has stopped the print")
        case "sleep":
            time.sleep(request["seconds"])
    return {"how": request["how"]}


def late_at_first(request: dict[str, Any]) -> dict[str, Any]:
    """Log begin and end; the item that is `slow` sleeps, but only the first time."""
    number, seen = request["number"], os.pread(LOG_FILE, 2**16, 0).decode()
    _log(number, "begin")
    is_first = f'[{number}, "begin"' not in seen
    time.sleep(100 if request["slow"] and is_first else 0.1)
    _log(number, "end")
    return {}


def _log(number: int, event: str) -> None:
    os.write(LOG_FILE, json.dumps([number, event, time.monotonic()]).encode() + b"\n")


def pry(request: dict[str, Any]) -> dict[str, Any]:
    """What a hijacked worker can do: name of the deed -> the error it meets, or "done"."""
    deeds = {
        "read the file that it was given": lambda: _read_given(request["path"]),
        "read a library": lambda: Path(json.__file__).read_bytes(),
        "read another video": lambda: Path(request["other"]).read_bytes(),
        "read /etc/passwd": lambda: Path("/etc/passwd").read_bytes(),
        "read its environment": lambda: Path("/proc/self/environ").read_bytes(),
        "list a folder": lambda: list(Path(request["other"]).parent.iterdir()),
        "write": lambda: Path(request["other"]).with_name("new").write_bytes(b"x"),
        "overwrite": lambda: Path(request["other"]).write_bytes(b"x"),
        "write into a library": lambda: Path(json.__file__).with_name("new.py").write_bytes(b"x"),
        "delete": lambda: Path(request["other"]).unlink(),
        "make a folder": lambda: Path(request["other"]).with_name("folder").mkdir(),
        "connect": lambda: socket.create_connection(("127.0.0.1", request["port"]), 5),
        "open a UDP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "open a local socket": lambda: socket.socket(socket.AF_UNIX),
        "start a program": lambda: subprocess.run(["/bin/true"], check=True),
        "mount": lambda: _mount(),
        "signal its parent": lambda: os.kill(os.getppid(), 0),
        "change its user": lambda: os.setuid(1),
    }
    return {deed: _error(act) for deed, act in deeds.items()}


def _error(act: Callable[[], object]) -> str:
    try:
        act()
    except Exception as error:
        return type(error).__name__
    return "done"


def _read_given(path: str) -> None:
    with opened(path) as descriptor:
        assert os.pread(descriptor, 5, 0) == b"video"


def _mount() -> None:
    if ctypes.CDLL(None, use_errno=True).mount(b"none", b"/tmp", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")


def _spin() -> NoReturn:
    while True:
        pass


def _fill_memory() -> NoReturn:
    hoard = []
    while True:
        hoard.append(bytearray(2**26))


def nonsense(request: dict[str, Any]) -> NoReturn:
    """Write garbage over the protocol, as a hijacked worker might."""
    for descriptor in range(3, 256):
        try:
            os.write(descriptor, bytes.fromhex(request["hex"]))
        except OSError:
            continue
    _spin()
