"""MLflow tracking that can never stop, slow down or change a training.

The training process only appends rows to a file in a folder, the spool. A child process of low
priority reads that file and sends it to MLflow. So neither the import of mlflow, nor a database
migration, nor a server that hangs is ever felt by a training step, and nothing is lost when the
server or the training dies: the next start of the training goes on where the sending stopped.

    rows.jsonl   {"step", "time_ms", "values"} or {"status", "time_ms"}; only ever appended to
    run.json     experiment, name, parameters, and the run id that the training knows
    sent.json    the run id in MLflow, and up to which byte rows.jsonl is sent
    mlflow.log   what mlflow itself has to say

The sending side is `fvlm/mlflow_sender.py`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from fvlm.core.errors import FvlmError
from fvlm.core.io import read_json, write_json

Status = Literal["FINISHED", "KILLED", "FAILED"]

DEADLINE_SECONDS = 30.0  # for sending what is left after the training has ended


class Tracker:
    """Records one training as one MLflow run, however often the training stops and resumes.

        with Tracker(run_name=..., run_id=None, params=..., spool=folder) as tracker:
            tracker.log(step, {"loss": 0.5})

    `spool` is a folder of this training alone. `run_id` is what an earlier Tracker of the training
    gave; an id in the spool is newer and wins. A finished spool that is sent makes way for a new
    run when no run id is given. Nested `params` become dotted names. The server is
    `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project's root; `DVC_EXP_NAME` names the run.

    Nothing raises when tracking fails: one line on stderr says so and the training goes on.
    """

    def __init__(
        self,
        *,
        run_name: str,
        run_id: str | None,
        params: dict[str, object],
        spool: Path,
        experiment: str = "fvlm",
    ) -> None:
        self._spool, self._run_id = spool, run_id
        self._rows: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._last_steps: dict[str, int] = {}
        name = os.environ.get("DVC_EXP_NAME") or run_name
        run = {"experiment": experiment, "name": name, "run_id": run_id, "params": flatten(params)}
        try:
            spool.mkdir(parents=True, exist_ok=True)
            self._read_earlier_rows()
            write_json(spool / "run.json", run)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._rows = os.open(spool / "rows.jsonl", flags, 0o644)
            os.write(self._rows, b"\n")  # ends a line that a crash has cut short
            self._append({"status": "RUNNING"})
            self._child = _start_child(spool)
        except OSError as error:
            self._fail(error)

    def _read_earlier_rows(self) -> None:
        rows, done = _read_all(self._spool)
        if self._run_id is None and done:
            (self._spool / "sent.json").unlink()
            (self._spool / "rows.jsonl").unlink()
            return
        for row in rows:
            self._last_steps |= dict.fromkeys(row.get("values", {}), row.get("step", -1))

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the server has given one."""
        return read_sent(self._spool)["run_id"] or self._run_id

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record metrics of one step; returns after one write to the page cache.

        A metric that already has a value at this or a later step is left out: a resumed training
        repeats the steps since its checkpoint, with the same values.
        """
        known = self._last_steps
        fresh = {n: float(value) for n, value in values.items() if step > known.get(n, -1)}
        if fresh:
            known |= dict.fromkeys(fresh, step)
            self._append({"step": step, "values": fresh})

    def close(self, *, status: Status, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        """Send how the training ended (KILLED: it will be resumed) and what is left.

        Returns within the deadline, and much sooner when the server has never answered (see
        `sender.ANSWER_SECONDS`). What is not sent by then stays in the spool.
        """
        self._append({"status": status})
        rows, self._rows = self._rows, None
        child, self._child = self._child, None
        try:
            if rows is not None:
                os.fsync(rows)
                os.close(rows)
            if child is not None:
                _end_child(child, deadline_seconds)
        except OSError as error:
            self._fail(error)

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

    def _append(self, row: dict[str, Any]) -> None:
        if self._rows is None:
            return
        try:
            append_row(self._rows, row)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        rows, self._rows = self._rows, None
        if rows is not None:
            os.close(rows)
        print(f"tracking: {error}; training goes on untracked", file=sys.stderr, flush=True)


def flatten(params: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names and text: {"a": {"b": 1}} becomes {"a.b": "1"}."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        nested = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": str(value)}
    return flat


def append_row(rows: int, row: dict[str, Any]) -> None:
    """Write one row, with the time, to the open `rows.jsonl`; a single write, so never mixed."""
    line = json.dumps(row | {"time_ms": time.time_ns() // 1_000_000}) + "\n"
    os.write(rows, line.encode())


def read_rows(spool: Path, offset: int, *, limit: int | None) -> tuple[list[dict[str, Any]], int]:
    """Rows of at most `limit` lines from byte `offset` on, and the offset behind them."""
    rows: list[dict[str, Any]] = []
    path = spool / "rows.jsonl"
    if not path.exists():
        return rows, offset
    with path.open("rb") as file:
        file.seek(offset)
        for line in islice(file, limit):
            if not line.endswith(b"\n"):
                break  # still being written
            offset += len(line)
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # blank, or cut short by a crash
    return rows, offset


def _read_all(spool: Path) -> tuple[list[dict[str, Any]], bool]:
    """All rows; and whether they are those of a finished training and all of them are sent."""
    rows, end = read_rows(spool, 0, limit=None)
    statuses = [row["status"] for row in rows if "status" in row]
    return rows, statuses[-1:] == ["FINISHED"] and read_sent(spool)["offset"] == end


def forget_sent(root: Path, *, keep: Collection[str]) -> None:
    """Delete the spools of finished trainings but those to keep; what is not sent yet stays."""
    for rows in root.glob("*/rows.jsonl"):
        spool = rows.parent
        if spool.name not in keep and _read_all(spool)[1]:
            shutil.rmtree(spool, ignore_errors=True)


def read_sent(spool: Path) -> dict[str, Any]:
    """What `sent.json` says. Without it all is sent again, which MLflow recognises."""
    try:
        return dict(read_json(spool / "sent.json"))
    except (FvlmError, OSError):
        return {"run_id": None, "offset": 0}


def _start_child(spool: Path) -> subprocess.Popen[bytes]:
    folders = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]
    with (spool / "mlflow.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "fvlm.tracking.sender", str(spool), "follow"],
            stdin=subprocess.PIPE,  # its end is the end of the training, also when that is killed
            stdout=2,  # the child's own line; stderr is what mlflow writes
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))},
            process_group=0,  # Ctrl-C is for the training, which then closes the tracker
        )


def _end_child(child: subprocess.Popen[bytes], deadline_seconds: float) -> None:
    try:
        child.communicate(f"{deadline_seconds * 0.9}\n".encode(), timeout=deadline_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.returncode != 0:
        print("tracking: the process that sends to MLflow was killed", file=sys.stderr, flush=True)
