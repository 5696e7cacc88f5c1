"""The process that sends the spool of a training to MLflow; see `fvlm/tracking.py`.

    python -m fvlm.tracking.sender SPOOL         send what a training that is over has left
    python -m fvlm.tracking.sender SPOOL follow  send until standard input ends: a Tracker's child

Only here is mlflow imported. The process gives way to all others, and ends at its deadline.
"""

import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fvlm.core.io import project_root, read_json, state_folder, write_json
from fvlm.tracking.tracker import DEADLINE_SECONDS, append_row, read_rows, read_sent

SEND_SECONDS = 5.0  # new rows are looked for this often
RETRY_SECONDS = 30.0  # longest pause between attempts to reach a server that fails
LAST_ATTEMPTS = 3  # once the training has ended
ANSWER_SECONDS = 3.0  # by then a server must have answered at all, once the training has ended
BATCH_METRICS, BATCH_PARAMS, PARAM_LENGTH = 1000, 100, 6000  # limits of MLflow
MLFLOW_SETTINGS = {  # where the user has set nothing else
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


class _Sender:
    """Sends the rows of a spool to its MLflow run, from where the last sending stopped."""

    def __init__(self, spool: Path) -> None:
        from mlflow import MlflowClient
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._make_monitor = SystemMetricsMonitor
        self._spool, self._sent = spool, read_sent(spool)
        # Two processes that make or migrate one database at the same time break each other.
        with _lock(state_folder() / "mlflow.lock"):
            self._client = MlflowClient(tracking_uri=tracking_uri())

    def open(self) -> None:
        """Ask for the run, or for a new one: the first thing that a server is asked."""
        run = self._open_run(read_json(self._spool / "run.json"))
        self._run_id, self._start_ms = run.info.run_id, run.info.start_time
        # The parts of the monitor only: its own thread ends at the first failure of the server.
        self._monitor = self._make_monitor(self._run_id, tracking_uri=tracking_uri())
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
            rows, offset = read_rows(self._spool, self._sent["offset"], limit=BATCH_METRICS)
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
        self.ended, self.asked, self.answered = (threading.Event() for _ in range(3))
        self.problem = "no answer in time"
        self.is_sent = self._complained = False

    def run(self) -> None:
        with _lock(self._spool / "lock"):  # the child of a killed training may still be sending
            self._send_all()

    def _send_all(self) -> None:
        sender: _Sender | None = None
        failures = last_failures = 0
        while not self.is_sent and last_failures < LAST_ATTEMPTS:
            ended = self.ended.is_set()  # asked before sending, so that the last rows are seen
            try:
                sender = sender or self._connect()
                if not ended:
                    sender.sample_system()
                sender.send()
                self.is_sent, failures = ended, 0
            except Exception as error:
                sender, failures, last_failures = None, failures + 1, last_failures + ended
                self.asked.set()  # or mlflow could not even be imported
                self.problem = _root_cause(error)
                if failures == 2:  # a locked database is free again at the second attempt
                    self.complain()
            if ended:
                time.sleep(0.0 if self.is_sent else 1.0)
            else:
                self.ended.wait(min(2.0**failures, RETRY_SECONDS) if failures else SEND_SECONDS)

    def _connect(self) -> _Sender:
        sender = _Sender(self._spool)  # takes long: it imports mlflow, and may migrate a database
        self.asked.set()
        sender.open()
        self.answered.set()
        return sender

    def wait(self, seconds: float) -> None:
        """Until all is sent, for at most `seconds`; a silent server gets ANSWER_SECONDS only."""
        end = time.monotonic() + seconds
        self.asked.wait(seconds)
        patience = min(ANSWER_SECONDS, end - time.monotonic())
        if not tracking_uri().startswith("http") or self.answered.wait(max(0.0, patience)):
            self.join(max(0.0, end - time.monotonic()))

    def complain(self) -> None:
        """Say once what is wrong and what becomes of the rows."""
        if not self._complained:
            self._complained = True
            _say(
                f"MLflow at {tracking_uri()} fails ({self.problem}). Training is not affected; "
                "what is not sent is kept and goes out at its next start, or by "
                f"`python -m fvlm.tracking.sender {self._spool}`"
            )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _root_cause(error: BaseException) -> str:
    """One line: "ConnectionRefusedError: ..." rather than the retries wrapped around it."""
    cause = current = error
    while inner := current.__cause__ or current.__context__:
        current = inner
        if isinstance(inner, OSError):
            cause = inner
    return f"{type(cause).__name__}: {cause}".splitlines()[0]


def _say(text: str) -> None:
    print(f"tracking: {text}", flush=True)


def _append_to(spool: Path, row: dict[str, Any]) -> None:
    rows = os.open(spool / "rows.jsonl", os.O_WRONLY | os.O_APPEND)
    try:
        append_row(rows, row)
    finally:
        os.close(rows)


def _main(spool: Path, *, follow: bool) -> None:
    os.nice(10)  # a tenth of a busy core: 19 would take minutes to import mlflow there
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    delivery = _Delivery(spool)
    delivery.start()
    deadline = sys.stdin.readline() if follow else str(DEADLINE_SECONDS)
    if not deadline:  # the training died without a word; it can be resumed
        _append_to(spool, {"status": "KILLED"})
    delivery.ended.set()
    delivery.wait(float(deadline or DEADLINE_SECONDS))
    if not delivery.is_sent:
        delivery.complain()
    os._exit(0)  # a thread that hangs in mlflow does not keep the process


if __name__ == "__main__":
    _main(Path(sys.argv[1]), follow=sys.argv[2:] == ["follow"])
