"""MLflow tracking that can never stop, slow down or change a training.

The training process only appends rows to a file in a folder, the spool. A child process of lowest
priority reads that file and sends it to MLflow. So neither the import of mlflow, nor a database
migration, nor a server that hangs is ever felt by a training step, and nothing is lost when the
server or the training dies: the next start of the training goes on where the sending stopped.

    rows.jsonl   {"step", "time_ms", "values"} or {"status", "time_ms"}; only ever appended to
    run.json     experiment, name, parameters, and the run id that the training knows
    sent.json    the run id in MLflow, and up to which byte rows.jsonl is sent
    mlflow.log   what mlflow itself has to say

`python -m fvlm.tracking SPOOL` sends what is left of a training that will not start again.
"""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from fvlm.errors import FvlmError
from fvlm.io import project_root, read_json, write_json

Status = Literal["FINISHED", "KILLED", "FAILED"]

DEADLINE_SECONDS = 30.0  # for sending what is left after the training has ended
SEND_SECONDS = 5.0  # the child looks for new rows this often
RETRY_SECONDS = 30.0  # longest pause between attempts to reach a server that fails
LAST_ATTEMPTS = 3  # once the training has ended
BATCH_METRICS, BATCH_PARAMS, PARAM_LENGTH = 1000, 100, 6000  # limits of MLflow
MLFLOW_SETTINGS = {  # where the user has set nothing else
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


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
        sent = _read_sent(self._spool)
        rows, end = _read_rows(self._spool, 0, limit=None)
        statuses = [row["status"] for row in rows if "status" in row]
        if self._run_id is None and statuses[-1:] == ["FINISHED"] and sent["offset"] == end:
            (self._spool / "sent.json").unlink()
            (self._spool / "rows.jsonl").unlink()
            return
        for row in rows:
            self._last_steps |= dict.fromkeys(row.get("values", {}), row.get("step", -1))

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the server has given one."""
        return _read_sent(self._spool)["run_id"] or self._run_id

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

        Returns within the deadline. What is not sent by then stays in the spool.
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
            _append_row(self._rows, row)
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


def _append_row(rows: int, row: dict[str, Any]) -> None:
    line = json.dumps(row | {"time_ms": time.time_ns() // 1_000_000}) + "\n"
    os.write(rows, line.encode())


def _read_rows(spool: Path, offset: int, *, limit: int | None) -> tuple[list[dict[str, Any]], int]:
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


def _read_sent(spool: Path) -> dict[str, Any]:
    try:
        return dict(read_json(spool / "sent.json"))
    except (FvlmError, OSError):
        return {"run_id": None, "offset": 0}


def _start_child(spool: Path) -> subprocess.Popen[bytes]:
    folders = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    with (spool / "mlflow.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "fvlm.tracking", str(spool), "follow"],
            stdin=subprocess.PIPE,  # its end is the end of the training, also when that is killed
            stdout=2,  # the child's own line; stderr is what mlflow writes
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))},
            process_group=0,  # Ctrl-C is for the training, which then closes the tracker
        )


def _end_child(child: subprocess.Popen[bytes], deadline_seconds: float) -> None:
    try:
        child.communicate(f"{deadline_seconds * 0.9}".encode(), timeout=deadline_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.returncode != 0:
        print("tracking: the process that sends to MLflow was killed", file=sys.stderr, flush=True)


class _Sender:
    """Sends the rows of a spool to its MLflow run, from where the last sending stopped."""

    def __init__(self, spool: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._spool, self._sent = spool, _read_sent(spool)
        self._client = MlflowClient(tracking_uri=tracking_uri())
        run = self._open_run(read_json(spool / "run.json"))
        self._run_id, self._start_ms = run.info.run_id, run.info.start_time
        # The parts of the monitor only: its own thread ends at the first failure of the server.
        self._monitor = SystemMetricsMonitor(self._run_id, tracking_uri=tracking_uri())
        self._sample()  # processor use is since the last sample

    def _open_run(self, wanted: dict[str, Any]) -> Any:
        from mlflow.entities import Param

        known_id = self._sent["run_id"] or wanted["run_id"]
        run = self._find_run(known_id) if known_id else None
        if run is None:
            if known_id:
                _say(f"run {known_id} is unknown to {tracking_uri()}; a new run takes its place")
            experiment_id = self._find_experiment(wanted["experiment"])
            run = self._client.create_run(experiment_id, run_name=wanted["name"])
            self._sent["offset"] = 0
        self._sent["run_id"] = run.info.run_id
        write_json(self._spool / "sent.json", self._sent)
        params = [  # a parameter never changes in MLflow: the first value stays
            Param(name, text[:PARAM_LENGTH])
            for name, text in wanted["params"].items()
            if name not in run.data.params
        ]
        for start in range(0, len(params), BATCH_PARAMS):
            batch = params[start : start + BATCH_PARAMS]
            self._client.log_batch(run.info.run_id, params=batch)
        return run

    def _find_run(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _find_experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        return str(experiment.experiment_id if experiment else self._client.create_experiment(name))

    def _sample(self) -> dict[str, float]:
        self._sampled = time.monotonic()
        self._monitor.collect_metrics()
        values = self._monitor.aggregate_metrics()
        for part in self._monitor.monitors:
            part.clear_metrics()
        return {f"system/{name}": value for name, value in values.items()}

    def sample_system(self) -> None:
        """When it is time, add to the spool what mlflow reads of processor, memory and GPU."""
        if time.monotonic() - self._sampled < self._monitor.sampling_interval:
            return
        seconds = int(time.time() - self._start_ms / 1000)
        _append_to(self._spool, {"step": seconds, "values": self._sample()})

    def send(self) -> None:
        """Send every row that is there.

        MLflow knows a metric by name, value, time and step: rows sent shortly before a crash, and
        not yet noted in `sent.json`, are sent again with their old time and are stored once.
        """
        from mlflow.entities import Metric

        while True:
            rows, offset = _read_rows(self._spool, self._sent["offset"], limit=BATCH_METRICS)
            if offset == self._sent["offset"]:
                return
            metrics = [
                Metric(name, value, row["time_ms"], row["step"])
                for row in rows
                for name, value in row.get("values", {}).items()
            ]
            for start in range(0, len(metrics), BATCH_METRICS):
                batch = metrics[start : start + BATCH_METRICS]
                self._client.log_batch(self._run_id, metrics=batch)
            self._send_status([row for row in rows if "status" in row])
            self._sent["offset"] = offset
            write_json(self._spool / "sent.json", self._sent)

    def _send_status(self, rows: list[dict[str, Any]]) -> None:
        if rows and rows[-1]["status"] == "RUNNING":
            self._client.update_run(self._run_id, status="RUNNING")
        elif rows:
            status, end_ms = rows[-1]["status"], rows[-1]["time_ms"]
            self._client.set_terminated(self._run_id, status, end_time=end_ms)


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else a database in the user's checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


class _Delivery(threading.Thread):
    """Sends until the training has ended and all is sent, whatever goes wrong."""

    def __init__(self, spool: Path) -> None:
        super().__init__(daemon=True)
        self._spool = spool
        self.ended = threading.Event()
        self.problem = "no answer in time"
        self.is_sent = self._complained = False

    def run(self) -> None:
        with (self._spool / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the child of a killed training may still be sending
            self._send_all()

    def _send_all(self) -> None:
        sender, failures, last_failures = None, 0, 0
        while not self.is_sent and last_failures < LAST_ATTEMPTS:
            ended = self.ended.is_set()  # asked before sending, so that the last rows are seen
            try:
                sender = sender or _Sender(self._spool)
                if not ended:
                    sender.sample_system()
                sender.send()
                self.is_sent, failures = ended, 0
            except Exception as error:
                sender, failures, last_failures = None, failures + 1, last_failures + ended
                self.problem = f"{type(error).__name__}: {error}".splitlines()[0]
                if failures == 2:  # a locked database is free again at the second attempt
                    self.complain()
            if ended:
                time.sleep(0.0 if self.is_sent else 1.0)
            else:
                self.ended.wait(min(2.0**failures, RETRY_SECONDS) if failures else SEND_SECONDS)

    def complain(self) -> None:
        """Say once what is wrong and what becomes of the rows."""
        if not self._complained:
            self._complained = True
            _say(
                f"MLflow at {tracking_uri()} fails ({self.problem}); training goes on, and what is "
                f"logged is sent at its next start or by `python -m fvlm.tracking {self._spool}`"
            )


def _say(text: str) -> None:
    print(f"tracking: {text}", flush=True)


def _append_to(spool: Path, row: dict[str, Any]) -> None:
    rows = os.open(spool / "rows.jsonl", os.O_WRONLY | os.O_APPEND)
    try:
        _append_row(rows, row)
    finally:
        os.close(rows)


def _main(spool: Path, *, follow: bool) -> None:
    os.nice(19)
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    delivery = _Delivery(spool)
    delivery.start()
    deadline = sys.stdin.read() if follow else str(DEADLINE_SECONDS)
    if not deadline:  # the training died without a word; it can be resumed
        _append_to(spool, {"status": "KILLED"})
    delivery.ended.set()
    delivery.join(float(deadline or DEADLINE_SECONDS))
    if not delivery.is_sent:
        delivery.complain()
    os._exit(0)  # a thread that hangs in mlflow does not keep the process


if __name__ == "__main__":
    _main(Path(sys.argv[1]), follow=sys.argv[2:] == ["follow"])
