"""MLflow tracking that can never stop, slow down or change a training.

The training hands its rows to a child process of low priority, through a pipe that it never waits
for. The child (`sender.py`) finds the MLflow run of the training by tag, asks which step it has got
to, and sends the rest. Nothing is stored for it: every checkpoint holds the history of all steps,
so that the next start sends what is missing. Neither the import of mlflow, nor a database
migration, nor a server that hangs is ever felt by a training step.

The pipe carries one JSON object a line:

    first   {"training", "name", "params", "tags", "results", "artifacts"}
    rows    {"time_ms": milliseconds, or null for a step of the history, "row": {"step": ...}}
    last    {"status", "until": deadline on the monotonic clock}
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from fvlm.core.io import state_folder

Status = Literal["FINISHED", "KILLED", "FAILED"]

TRAINED_WEIGHTS = "trained_weights"  # a tag: what a run has in common with its evaluation
DEADLINE_SECONDS = 30.0  # for sending what is left after the training has ended
RESULTS_SECONDS = 120.0  # for sending results, which are larger: a report holds pictures
CHUNK_BYTES = 2**16  # what a pipe takes at once


class Tracker:
    """Records one training as one MLflow run, however often the training stops and resumes.

        with Tracker(name, title="seed 0", params=..., tags=...) as tracker:
            tracker.log_history(history)  # the steps of the checkpoint
            tracker.log({"step": 7, "samples": 64, "loss": 0.5}, memory_gib=1.2)

    `training` names the training for good, such as the hash of all that decides it; it is the tag
    by which the run is found. People read `title` behind `DVC_EXP_NAME`, or else behind the first
    characters of `tags["git_commit"]`. Nested `params` become dotted names. The server is
    `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project's root; the experiment is
    `MLFLOW_EXPERIMENT_NAME`, else "fvlm". With `active=False`, or `FVLM_TRACKING=off` in the
    environment, nothing is recorded. `results` and `artifacts` are for `send_results`.

    Nothing raises when tracking fails: one line on stderr says so and the training goes on.
    """

    def __init__(
        self,
        training: str,
        *,
        title: str = "",
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        results: Mapping[str, float] | None = None,
        artifacts: Iterable[Path] = (),
        active: bool = True,
    ) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._pending = bytearray()
        self._last: tuple[float, float] | None = None  # seconds and samples of the last step
        if not active or os.environ.get("FVLM_TRACKING") == "off":
            return
        experiment, tags = os.environ.get("DVC_EXP_NAME", ""), dict(tags or {})
        commit = re.match("[0-9a-f]{7}", tags.get("git_commit", ""))  # there may be no repository
        about = {
            "training": training,
            "name": " ".join(
                [experiment or (commit[0] if commit else training[:7]), title]
            ).strip(),
            "params": flatten(params or {}),
            "tags": tags | ({"dvc_experiment": experiment} if experiment else {}),
            "results": results or {},
            "artifacts": [str(path.resolve()) for path in artifacts],
        }
        try:
            lock_path().parent.mkdir(parents=True, exist_ok=True)
            lock_path().touch()
            self._child = _start_child()
        except OSError as error:
            self._fail(error)
        self._send([about])

    def log_history(self, history: Iterable[Mapping[str, float]]) -> None:
        """Hand over the steps, from step 0 on, that the training resumes after."""
        self._send({"time_ms": None, "row": row} for row in history)

    def log(self, row: Mapping[str, float], *, memory_gib: float) -> None:
        """Hand over a step that was just made: `step`, `samples` seen so far, losses and others."""
        now, samples = time.monotonic(), row["samples"]
        values = {"memory_gib": memory_gib, **row}
        if self._last is not None:
            before, samples_before = self._last
            values["samples_per_second"] = (samples - samples_before) / max(now - before, 1e-9)
        self._last = now, samples
        self._send([{"time_ms": time.time_ns() // 1_000_000, "row": values}])

    def close(self, *, status: Status, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        """Send how the training ended (KILLED: it will be resumed) and what is left.

        Returns within the deadline, and much sooner when the server has never answered (see
        `sender.ANSWER_SECONDS`). The next start sends what is not sent by then.
        """
        child, self._child = self._child, None
        if child is None:
            return
        end = {"status": status, "until": time.monotonic() + 0.9 * deadline_seconds}
        try:
            child.communicate(bytes(self._pending) + _line(end), timeout=deadline_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.returncode != 0:
            _say("the process that sends to MLflow was killed")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close(status="FINISHED")
        else:  # KeyboardInterrupt and SystemExit stop a training that will be resumed
            self.close(status="FAILED" if isinstance(error, Exception) else "KILLED")

    def _send(self, messages: Iterable[Mapping[str, Any]]) -> None:
        """Write what the pipe takes without waiting; the rest goes with the next message."""
        if self._child is None or self._child.stdin is None:
            return
        for message in messages:
            self._pending += _line(message)
        try:
            while self._pending:
                written = os.write(self._child.stdin.fileno(), self._pending[:CHUNK_BYTES])
                del self._pending[:written]
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()
        _say(f"{error}; training goes on untracked")


def send_results(
    training: str,
    values: Mapping[str, float | str | None],
    artifacts: Iterable[Path] = (),
    *,
    title: str = "",
    history: Iterable[Mapping[str, float]] = (),
    deadline_seconds: float = RESULTS_SECONDS,
) -> None:
    """Add what was measured of a finished training to its MLflow run.

    Numbers become metrics below `evaluation/`, text (such as the verdict) becomes tags, None is
    left out; the files become artifacts. Sent again, equal values stay as they are and files are
    replaced. A run that MLflow lacks is made, with `title` as of Tracker, and it gets the steps of
    `history` that it lacks. Nothing raises when that fails: one line on stderr says so.
    """
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    numbers = {f"evaluation/{n}": v for n, v in values.items() if isinstance(v, int | float)}
    tracker = Tracker(training, title=title, tags=texts, results=numbers, artifacts=artifacts)
    tracker.log_history(history)
    tracker.close(status="FINISHED", deadline_seconds=deadline_seconds)


@cache
def tell_gpu_is_unseen() -> None:
    """Say once that MLflow cannot show how busy the GPU is, where the package for it is missing."""
    if find_spec("pynvml") is None:
        _say(
            "how busy the GPU is and what power it takes is not recorded: "
            "pip install nvidia-ml-py, or -e '.[gpu]'"
        )


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names and text: {"a": {"b": 1}} becomes {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": str(value)}
    return flat


def lock_path() -> Path:
    """Held by a process that talks to MLflow, one at a time in a checkout."""
    return state_folder() / "mlflow" / "lock"


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _say(text: str) -> None:
    print(f"tracking: {text}", file=sys.stderr, flush=True)


def _start_child() -> subprocess.Popen[bytes]:
    folders = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "fvlm.tracking.sender"],
        stdin=subprocess.PIPE,  # its end is the end of the training, also when that is killed
        stdout=subprocess.DEVNULL,
        bufsize=0,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))},
        process_group=0,  # Ctrl-C is for the training, which then closes the tracker
    )
    assert child.stdin is not None
    os.set_blocking(child.stdin.fileno(), False)
    return child
