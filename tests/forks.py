"""A `python` for tests: stages and commands are forks of a process that has imported libraries.

    Forks(folder, environment).bin / "python"   runs as Python does

`-m pipeline.STAGE` and `-m fvlm` are handed to a server, which forks: in the caller's folder, with
its environment and files, the module runs as under `python -m`. The project's own code is imported
anew each time; torch, transformers and diffusers, which take seconds, are there before. All else is
run by Python itself. A signal reaches the fork only as its end: SIGKILL when its caller has gone.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OWN = ("fvlm", "pipeline")
PRELOADED = ("pipeline.encode", "pipeline.train", "pipeline.evaluate", "pipeline.report")
PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m pipeline."*|"-m fvlm") exec {real} -IS {script} {socket} "$@" ;;
    *) exec {real} "$@" ;;
esac
"""


class Forks:
    """The server, and the folder `bin` with a `python` that asks it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.bin, path = folder / "bin", folder / "socket"
        self.bin.mkdir()
        script = PYTHON.format(real=sys.executable, script=__file__, socket=path)
        (self.bin / "python").write_text(script)
        (self.bin / "python").chmod(0o755)
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(path), "", str(self.bin / "python")],
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._server.stdout is not None
        assert self._server.stdout.read(1), "the server of forks did not start"

    def close(self) -> None:
        """End the server: it lives as long as its input does."""
        self._server.communicate()


def ask(path: str, arguments: list[str]) -> int:
    """Have the server run `python ARGUMENTS`, here; its exit code."""
    order = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    text = json.dumps(order).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [len(text).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(text)
        return int(connection.makefile().readline() or -signal.SIGKILL)


def serve(path: str) -> dict[str, Any]:
    """Fork for each order until the input ends; returns in these forks only, with the order."""
    for module in PRELOADED:
        importlib.import_module(module)
    assert importlib.import_module("diffusers").AutoencoderKL  # as load_vae will ask
    for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # a fork that looks through all of it would copy it
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.write(1, b"\n")
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                return answer(connection)
            connection.close()
            with suppress(ChildProcessError):  # those that have answered meanwhile
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    os._exit(0)


def answer(connection: socket.socket) -> dict[str, Any]:
    """Fork once more and tell the caller how that ends; returns in that fork, with the order."""
    size, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    text = connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    order: dict[str, Any] = json.loads(text)
    process = os.fork()
    if process == 0:
        os.setsid()
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
            os.close(descriptor)
        connection.close()
        return order
    ended: Any = os.pidfd_open(process)
    if ended not in select.select([ended, connection], [], [])[0]:  # the caller was killed
        os.killpg(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with suppress(BrokenPipeError):
        connection.sendall(f"{code}\n".encode())
    os._exit(0)


def run(order: dict[str, Any], python: str) -> None:
    """As `python -m MODULE ...` does."""
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    own = {str(ROOT), str(Path(__file__).parent)}
    sys.path[:] = [str(Path.cwd()), *given, *(entry for entry in sys.path if entry not in own)]
    importlib.invalidate_caches()
    sys.executable = python
    _, module, *sys.argv[1:] = order["arguments"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[2]:
        code = ask(sys.argv[1], sys.argv[2:])
        if code < 0:
            os.kill(os.getpid(), -code)
        sys.exit(code)
    run(serve(sys.argv[1]), sys.argv[3])
