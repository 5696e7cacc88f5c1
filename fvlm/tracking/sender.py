"""The child process that sends to MLflow what a Tracker hands over; see `tracker.py`.

Only here is mlflow imported. The process gives way to a training, and ends at its deadline.
"""

import fcntl
import json
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fvlm.core.errors import FvlmError
from fvlm.core.io import project_root
from fvlm.tracking.tracker import DEADLINE_SECONDS, lock_path

TAG = "fvlm.training"  # names the training that a run belongs to
FIRST = ("git_commit", "dvc_experiment")  # tags that stay those of the first start
DIED = "DIED"  # without a word: KILLED, since it can be resumed
SEND_SECONDS = 5.0  # new rows are looked for this often
RETRY_SECONDS = 30.0  # longest pause between attempts to reach a server that fails
LAST_ATTEMPTS = 3  # once the training has ended
ANSWER_SECONDS = 3.0  # by then a server must have answered at all, once the training has ended
BATCH_METRICS, BATCH_PARAMS, PARAM_LENGTH = 1000, 100, 6000  # limits of MLflow
MLFLOW_SETTINGS = {  # where the user has set nothing else
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}
LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


class _Sender:
    """Brings the MLflow run of a training up to date with `rows`, whatever it has already."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.rows: list[dict[str, Any]] = []  # messages with "time_ms" and "row", step 0 first
        self.answered = threading.Event()  # the server, at least once
        self._about, self._sampled = about, 0.0
        self._client: Any = None
        self._monitor: Any = None
        self._system: deque[tuple[int, dict[str, float]]] = deque(maxlen=10_000)  # about a day

    def send(self, status: str) -> None:
        """Send what the run lacks; sent twice, nothing changes."""
        with _lock():  # two processes that make one database at the same time break each other
            rows, run = self.rows.copy(), self._find_run()
            self.answered.set()
            over = run is not None and run.info.status == "FINISHED"
            if over and rows and (rows[0]["time_ms"] or 0) > run.info.end_time:
                run = None  # trained again, from step 0 on, after its state was forgotten
            run = run or self._client.create_run(
                self._experiment,
                tags=self._about["tags"] | {TAG: self._about["training"]},
                run_name=self._about["name"],
            )
            sent = run.data.metrics.get("step", -1)
            new = [row for row in rows if row["row"]["step"] > sent]
            if over and not new:
                if not self._about["results"]:
                    return
                status = "FINISHED"
            if status == "RUNNING":
                self._sample_system()
            self._send_texts(run)
            self._send_metrics(run, new)
            while self._about["artifacts"]:
                self._client.log_artifact(run.info.run_id, self._about["artifacts"][0])
                del self._about["artifacts"][0]
            if status == DIED:  # unless it was started again and has got further already
                is_ahead = bool(rows) and sent > rows[-1]["row"]["step"]
                status = run.info.status if is_ahead else "KILLED"
            if status != run.info.status:
                change = "update_run" if status == "RUNNING" else "set_terminated"
                getattr(self._client, change)(run.info.run_id, status=status)

    def _find_run(self) -> Any:
        """The newest run of this training, with its latest metrics; None when there is none."""
        from mlflow import MlflowClient

        self._client = self._client or MlflowClient(tracking_uri=tracking_uri())
        name = experiment_name()
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            folder = (lock_path().parent / "artifacts").as_uri()  # a server has a place of its own
            place = None if tracking_uri().startswith(("http", "databricks")) else folder
            self._experiment = self._client.create_experiment(name, artifact_location=place)
            return None
        self._experiment = experiment.experiment_id
        if experiment.lifecycle_stage != "active":
            raise FvlmError(
                f"experiment {name!r} was deleted and takes no runs: set MLFLOW_EXPERIMENT_NAME to "
                f"another name, or restore it: MLFLOW_TRACKING_URI={tracking_uri()} mlflow "
                f"experiments restore --experiment-id {self._experiment}"
            )
        query, order = f"tags.`{TAG}` = '{self._about['training']}'", ["attributes.start_time DESC"]
        runs = self._client.search_runs([self._experiment], query, max_results=1, order_by=order)
        return runs[0] if runs else None

    def _send_texts(self, run: Any) -> None:
        from mlflow.entities import Param

        known = run.data.tags
        for name, text in self._about["tags"].items():
            if known.get(name) != text and not (name in FIRST and name in known):
                self._client.set_tag(run.info.run_id, name, text)
        params = [  # a parameter never changes in MLflow: the first value stays
            Param(name, text[:PARAM_LENGTH])
            for name, text in self._about["params"].items()
            if name not in run.data.params
        ]
        for start in range(0, len(params), BATCH_PARAMS):
            self._client.log_batch(run.info.run_id, params=params[start : start + BATCH_PARAMS])

    def _send_metrics(self, run: Any, new: list[dict[str, Any]]) -> None:
        """In batches of whole rows, `step` last: the value of that metric is what MLflow has."""
        from mlflow.entities import Metric

        now, system = time.time_ns() // 1_000_000, list(self._system)
        results = [
            (now, 0, {name: value})
            for name, value in self._about["results"].items()
            if run.data.metrics.get(name) != value
        ]
        steps = [(row["time_ms"] or now, row["row"]["step"], curves(row["row"])) for row in new]
        samples = [(at, (at - run.info.start_time) // 1000, values) for at, values in system]
        batch: list[Any] = []
        for at, step, values in [*results, *steps, *samples, (now, 0, {})]:
            if batch and (not values or len(batch) + len(values) > BATCH_METRICS):
                self._client.log_batch(run.info.run_id, metrics=batch)
                batch = []
            batch += [Metric(name, float(v), at, int(step)) for name, v in values.items()]
        for _ in system:
            self._system.popleft()

    def _sample_system(self) -> None:
        """When it is time, read processor, memory, network and GPU as mlflow does."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if self._monitor is None:  # its own thread would end at the first failure of the server
            self._monitor = SystemMetricsMonitor("", tracking_uri=tracking_uri())
        elif time.monotonic() - self._sampled < self._monitor.sampling_interval:
            return
        self._sampled = time.monotonic()
        self._monitor.collect_metrics()
        values = self._monitor.aggregate_metrics()
        for part in self._monitor.monitors:
            part.clear_metrics()
        sample = {f"system/{name}": value for name, value in values.items()}
        self._system.append((time.time_ns() // 1_000_000, sample))


def curves(row: dict[str, float]) -> dict[str, float]:
    """A row of the history, with the ratio of its losses; `step` comes last."""
    values = {name: value for name, value in row.items() if name != "step"}
    for clips in ("", "val_"):
        if row.get(f"{clips}loss_fine", 0.0) > 0:
            ratio = row[f"{clips}loss_coarse"] / row[f"{clips}loss_fine"]
            values[f"{clips}coarse_fine_ratio"] = ratio
            values[f"{clips}improvement_pct"] = 100 * (ratio - 1)
    return {**values, "step": row["step"]}


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else a database in the user's checkout."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


def experiment_name() -> str:
    """`MLFLOW_EXPERIMENT_NAME`, else "fvlm"."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "fvlm"


def say(text: str) -> None:
    """Print a line on stderr, without the password of an address."""
    print(re.sub(r"//[^/@\s]+@", "//***@", text), file=sys.stderr, flush=True)


class _Delivery(threading.Thread):
    """Sends until the training has ended and all is sent, whatever goes wrong."""

    def __init__(self, sender: _Sender) -> None:
        super().__init__(daemon=True)
        self._sender, self.status = sender, "RUNNING"
        self.ended = threading.Event()
        self.problem = "no answer in time"
        self.is_sent = self._complained = False

    def run(self) -> None:
        failures = last_failures = 0
        while not self.is_sent and last_failures < LAST_ATTEMPTS:
            ended = self.ended.is_set()  # asked before sending, so that the last rows are seen
            try:
                self._sender.send(self.status if ended else "RUNNING")
                self.is_sent, failures = ended, 0
            except Exception as error:
                self.problem, heals = _explain(error)
                failures, last_failures = failures + 1, last_failures + ended
                if failures == 2 or not heals:  # a locked database is free at the second attempt
                    self.complain()
                if ended and not heals:
                    return
            if ended:
                time.sleep(0.0 if self.is_sent else 1.0)
            else:
                self.ended.wait(min(2.0**failures, RETRY_SECONDS) if failures else SEND_SECONDS)

    def finish(self, status: str, until: float) -> None:
        """Wait until all is sent or the deadline; a silent server gets ANSWER_SECONDS only."""
        self.status = status
        self.ended.set()
        patience = min(ANSWER_SECONDS, until - time.monotonic())
        if not tracking_uri().startswith("http") or self._sender.answered.wait(max(0.0, patience)):
            self.join(max(0.0, until - time.monotonic()))
        if not self.is_sent:
            self.complain()

    def complain(self) -> None:
        """Say once what is wrong and what becomes of the rows; no password of an address."""
        if not self._complained:
            self._complained = True
            say(
                f"tracking: MLflow at {tracking_uri()} fails ({self.problem}). Training is not "
                "affected; what is not sent goes out when the stage runs again, also by "
                "`dvc repro -f -s train`"
            )


@contextmanager
def _lock() -> Iterator[None]:
    with lock_path().open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _explain(error: BaseException) -> tuple[str, bool]:
    """What is wrong, in one line, with its remedy; and whether waiting may help.

    "ConnectionRefusedError: ..." rather than the retries wrapped around it.
    """
    if isinstance(error, FvlmError):
        return str(error), False
    cause = current = error
    while inner := current.__cause__ or current.__context__:
        current = inner
        if isinstance(inner, OSError):
            cause = inner
    text = f"{type(cause).__name__}: {cause}".splitlines()[0]
    status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else 0
    return (f"{text}; {LOGIN}", False) if status in {401, 403} else (text, True)


def _main() -> None:
    lines = (json.loads(line) for line in sys.stdin.buffer if line.endswith(b"\n"))
    about = next(lines)
    if not about["results"]:  # for these a stage waits
        os.nice(10)  # a tenth of a busy core: 19 would take minutes to import mlflow there
    for name, value in MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.disable()  # stderr is that of the training
    with suppress(Exception):  # the first attempt to send tells what is wrong
        import mlflow  # noqa: F401 - so that ANSWER_SECONDS are those of the server
    sender = _Sender(about)
    delivery = _Delivery(sender)
    delivery.start()
    end: dict[str, Any] = {}
    for message in lines:
        if "row" in message:
            sender.rows.append(message)
        else:
            end = message
    died: dict[str, Any] = {"status": DIED, "until": time.monotonic() + DEADLINE_SECONDS}
    delivery.finish(**(died | end))
    os._exit(0)  # a thread that hangs in mlflow does not keep the process


if __name__ == "__main__":
    _main()
