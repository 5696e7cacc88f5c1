"""Tracking against real MLflow on SQLite, and against servers that refuse, hang and die."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fvlm.tracking import Tracker, flatten

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 90.0  # on a busy machine the sender, which gives way, is slow to start


class Database:
    """What stands in an MLflow database, read without mlflow."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()

    def runs(self) -> list[tuple[str, str]]:
        """(name, status) of every run, the oldest first."""
        return self.rows("select name, status from runs order by start_time")

    def steps(self, metric: str) -> list[int]:
        return [
            s for (s,) in self.rows(f"select step from metrics where key='{metric}' order by 1")
        ]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database made once: its migrations take seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    path = folder / "mlflow.db"
    code = (
        "import sys, mlflow\n"
        "mlflow.MlflowClient(tracking_uri='sqlite:///' + sys.argv[1]).search_experiments()"
    )
    settings = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run(
        [sys.executable, "-c", code, str(path)], env=settings, check=True, capture_output=True
    )
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The tracking server of this test, as the project finds it by default."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Database(tmp_path / "mlflow.db")


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tracking"


def start(spool: Path, run_id: str | None = None) -> Tracker:
    params: dict[str, object] = {"train": {"lr": 0.001, "betas": [0.9, 0.95]}, "seed": 7}
    return Tracker(run_name="first", run_id=run_id, params=params, spool=spool)


def log_steps(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.log(step, {"loss": 1 / (step + 1), "lr": 0.001})


def wait_for(condition: Any, seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_nested_parameters_become_dotted_names() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1, 2]}) == {
        "a.b.c": "1",
        "a.d": "None",
        "e": "[1, 2]",
    }


def test_a_stopped_and_resumed_training_is_one_run_with_every_step_once(
    database: Database, spool: Path
) -> None:
    first = start(spool)
    log_steps(first, range(10))
    first.close(status="KILLED", deadline_seconds=PATIENCE_SECONDS)
    run_id = first.run_id
    assert database.runs() == [("first", "KILLED")]

    # A crash: what is sent was not noted yet, and the last row is cut short.
    (spool / "sent.json").write_text(json.dumps({"run_id": run_id, "offset": 0}))
    with (spool / "rows.jsonl").open("ab") as rows:
        rows.write(b'{"step": 10, "val')

    second = start(spool, run_id)
    log_steps(second, range(6, 15))  # the checkpoint was at step 5
    second.log(14, {"val_loss": 0.25})  # another metric of a step that is known
    second.close(status="FINISHED", deadline_seconds=PATIENCE_SECONDS)

    assert second.run_id == run_id
    assert database.runs() == [("first", "FINISHED")]
    assert database.steps("loss") == list(range(15))
    assert database.steps("val_loss") == [14]
    assert dict(database.rows("select key, value from params")) == {
        "train.lr": "0.001",
        "train.betas": "[0.9, 0.95]",
        "seed": "7",
    }
    assert database.rows("select value from metrics where key='loss' and step=3") == [(0.25,)]

    third = start(spool)  # no run id and nothing left to do: another training
    third.log(0, {"loss": 9.0})
    third.close(status="FINISHED", deadline_seconds=PATIENCE_SECONDS)
    assert third.run_id != run_id
    assert [status for _, status in database.runs()] == ["FINISHED", "FINISHED"]


def test_a_deleted_database_gets_the_whole_history_again(
    database: Database, spool: Path, empty_database: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = start(spool)
    log_steps(first, range(5))
    first.close(status="KILLED", deadline_seconds=PATIENCE_SECONDS)
    run_id = first.run_id
    shutil.copy(empty_database, database.path)

    second = start(spool, run_id)
    log_steps(second, range(5, 8))
    second.close(status="FINISHED", deadline_seconds=PATIENCE_SECONDS)
    assert second.run_id != run_id
    assert database.runs() == [("first", "FINISHED")]
    assert database.steps("loss") == list(range(8))
    assert f"run {run_id} is unknown" in capfd.readouterr().err


TRAINING = """
import sys, time
from pathlib import Path
from fvlm.tracking import Tracker
tracker = Tracker(run_name="first", run_id=None, params={}, spool=Path(sys.argv[1]))
for step in range(50):
    tracker.log(step, {"loss": 1.0})
print("logged", flush=True)
time.sleep(60)
"""


def test_a_killed_training_loses_nothing_and_shows_as_killed(
    database: Database, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brave-owl")
    command = [sys.executable, "-c", TRAINING, str(spool)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as training:
        assert training.stdout is not None
        assert training.stdout.readline() == b"logged\n"
        training.send_signal(signal.SIGKILL)
    wait_for(lambda: database.runs() == [("brave-owl", "KILLED")])
    assert database.steps("loss") == list(range(50))


def test_system_metrics_are_recorded_and_the_training_stays_free_of_mlflow(
    database: Database, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    with start(spool) as tracker:
        log_steps(tracker, range(3))
        wait_for(lambda: database.steps("system/cpu_utilization_percentage"))
        assert database.steps("loss") == [0, 1, 2]  # already during the training
    assert database.steps("system/system_memory_usage_megabytes")
    check = "import sys, fvlm.tracking; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


def test_two_trainings_share_a_new_database(
    database: Database, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    database.path.unlink()
    trackers = [start(tmp_path / name) for name in ("a", "b")]
    for tracker in trackers:
        log_steps(tracker, range(20))
    threads = [
        threading.Thread(
            target=t.close, kwargs={"status": "FINISHED", "deadline_seconds": PATIENCE_SECONDS}
        )
        for t in trackers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.runs() == [("first", "FINISHED")] * 2
    assert Counter(database.steps("loss")) == dict.fromkeys(range(20), 2)
    assert capfd.readouterr().err == ""


def test_a_locked_database_is_waited_for(
    database: Database, spool: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(database.path)) as other:
        other.execute("begin exclusive")
        tracker = start(spool)
        log_steps(tracker, range(5))
        time.sleep(5)
        other.rollback()
    tracker.close(status="FINISHED", deadline_seconds=PATIENCE_SECONDS)
    assert database.steps("loss") == list(range(5))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError(), "FAILED"), (SystemExit(75), "KILLED"), (None, "FINISHED")]
)
def test_an_exception_decides_the_status(
    spool: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, status: str
) -> None:
    idle = [sys.executable, "-c", ""]
    monkeypatch.setattr(
        "fvlm.tracking._start_child", lambda _: subprocess.Popen(idle, stdin=subprocess.PIPE)
    )
    start(spool).__exit__(type(error) if error else None, error, None)
    (*_, last) = (spool / "rows.jsonl").read_text().splitlines()
    assert json.loads(last)["status"] == status


def test_a_spool_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with start(tmp_path / "file") as tracker:
        log_steps(tracker, range(3))
        assert tracker.run_id is None
    (line,) = capfd.readouterr().err.splitlines()
    assert "training goes on untracked" in line


# Servers that fail


class Server:
    """The few calls of an MLflow server that a run needs; refuses until `open`, hangs on demand."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, int]] = []
        self.status = ""
        self.hangs = False
        self.release = threading.Event()
        self.port = 0

    def open(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if server.hangs:
                    server.release.wait(60)
                    return
                code, value = server.answer(self.path, json.loads(body or b"{}"))
                text = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        call = path.split("?")[0].split("/mlflow/")[-1]
        info = {"run_id": "r1", "run_uuid": "r1", "experiment_id": "1", "status": "RUNNING"}
        info |= {"lifecycle_stage": "active", "start_time": 1}  # type: ignore[dict-item]
        if call == "experiments/get-by-name":
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}
        if call == "experiments/create":
            return 200, {"experiment_id": "1"}
        if call in ("runs/create", "runs/get"):
            return 200, {"run": {"info": info, "data": {}}}
        if call == "runs/update":
            self.status = body["status"]
            return 200, {"run_info": info}
        assert call == "runs/log-batch", call
        self.metrics += [(m["key"], int(m.get("step", 0))) for m in body.get("metrics", [])]
        return 200, {}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    server.open()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
    yield server
    server.close()


def test_a_server_that_dies_gets_the_rest_when_it_is_back(
    server: Server, spool: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = start(spool)
    log_steps(tracker, range(5))
    wait_for(lambda: ("loss", 4) in server.metrics)
    server.close()
    log_steps(tracker, range(5, 10))
    begin = time.monotonic()
    tracker.close(status="KILLED", deadline_seconds=PATIENCE_SECONDS)
    assert time.monotonic() - begin < 60
    (line,) = capfd.readouterr().err.splitlines()
    assert "ConnectionRefusedError" in line
    assert str(spool) in line

    server.open()
    tracker = start(spool, tracker.run_id)
    log_steps(tracker, range(8, 12))
    tracker.close(status="FINISHED", deadline_seconds=PATIENCE_SECONDS)
    assert [step for name, step in server.metrics if name == "loss"] == list(range(12))
    assert server.status == "FINISHED"
    assert tracker.run_id == "r1"


def test_a_server_that_hangs_is_left_at_the_deadline_and_served_later(
    database: Database, server: Server, spool: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.hangs = True
    tracker = start(spool)
    begin = time.monotonic()
    log_steps(tracker, range(1000))
    assert time.monotonic() - begin < 1
    tracker.close(status="FINISHED", deadline_seconds=6)
    assert time.monotonic() - begin < 8
    (line,) = capfd.readouterr().err.splitlines()
    assert "no answer in time" in line
    assert tracker.run_id is None

    command = [sys.executable, "-m", "fvlm.mlflow_sender", str(spool)]  # the training is over
    settings = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{database.path}"}
    subprocess.run(command, cwd=ROOT, env=settings, check=True, capture_output=True)
    assert database.runs() == [("first", "FINISHED")]
    assert database.steps("loss") == list(range(1000))
