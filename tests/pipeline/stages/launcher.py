"""Forks a stage from a process that has imported it, so that a run costs no start-up.

    python launcher.py STAGE FAULTS.py

Reads one JSON order a line: {"folder", "said", "kind", "at", "kill", "full", "file_bytes",
"spawn"}. Answers with the process id, and when the process has ended with {"code", "counts"}: its
exit code and, of an undisturbed run, its operations by kind. What it prints goes to the file
`said`. Unless `spawn` is set, the stage's sandboxed workers are forked as well instead of being
started anew; the sandbox itself stays as it is.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import resource
import sys
from typing import Any

from fvlm.core.stage import run
from fvlm.video import decode, sandbox, worker


class ForkedWorker:
    """Stands for `subprocess.Popen` of a worker: the same socket, session and sandbox."""

    def __init__(self, command: list[str], *, stderr: Any, **_: Any) -> None:
        parent, descriptor, function, seconds, memory_bytes = command[-5:]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.dup2(stderr.fileno(), 2)
                os.closerange(3, int(descriptor))
                os.closerange(int(descriptor) + 1, 256)
                limits = float(seconds), int(memory_bytes)
                sandbox.serve(int(descriptor), int(parent), function, *limits)
            finally:
                os._exit(0)

    def poll(self) -> int | None:
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            return os.waitstatus_to_exitcode(status) if pid else None
        return 0

    def wait(self, _timeout: float | None = None) -> int:
        with contextlib.suppress(ChildProcessError):
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return 0


def obey(order: dict[str, Any], stage: Any, faults: Any, counts: int) -> None:
    """In the forked process: run the stage."""
    os.chdir(order["folder"])
    said = os.open(order["said"], os.O_WRONLY | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, buffering=1)
    wanted = {name: order[name] for name in ("kind", "at", "kill", "full") if name in order}
    counter = faults.Faults(**wanted)
    counter.install()
    if order.get("file_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
    if not order.get("spawn"):
        vars(worker)["subprocess"] = Forked
    run(stage.main)
    os.write(counts, json.dumps(counter.counts).encode())


class Forked:
    """What `fvlm.video.worker` uses of the module `subprocess`."""

    Popen, DEVNULL, TimeoutExpired = ForkedWorker, -3, TimeoutError


def main() -> None:
    stage = importlib.import_module(f"pipeline.{sys.argv[1]}")
    spec = importlib.util.spec_from_file_location("faults", sys.argv[2])
    assert spec is not None
    assert spec.loader is not None
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # threads do not survive a fork
        assert importlib.import_module("diffusers").AutoencoderKL  # as load_vae will ask
    assert decode  # workers are forked with their function in place
    for line in sys.stdin:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                obey(json.loads(line), stage, faults, writer)
            except SystemExit as leave:
                os._exit(int(leave.code or 0))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        os.setpgid(pid, pid)  # a signal to the group may come at once
        os.close(writer)
        print(pid, flush=True)
        counts = os.read(reader, 4096)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(reader)
        print(json.dumps({"code": code, "counts": json.loads(counts or b"{}")}), flush=True)


if __name__ == "__main__":
    main()
