"""Real MLflow: a database for each test, read without mlflow, and a real server of it."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
PATIENCE_SECONDS = 90.0  # on a busy machine the sender, which gives way, is slow to start
SERVE = """
import sys
from werkzeug.serving import run_simple
from mlflow.server import app
run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True)
"""


class Database:
    """What stands in an MLflow database."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(query).fetchall()

    def runs(self) -> list[tuple[str, str]]:
        """(name, status) of every run, the oldest first."""
        return self.rows("select name, status from runs order by start_time")

    def steps(self, metric: str) -> list[int]:
        found = self.rows(f"select step from metrics where key='{metric}' order by 1")
        return [step for (step,) in found]


class Server:
    """An MLflow server of that database that can die, hang and come back."""

    def __init__(self, database: Database) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        store = {"_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database.path}"}
        root = {"_MLFLOW_SERVER_ARTIFACT_ROOT": str(database.path.parent / "artifacts")}
        self._settings = os.environ | store | root | QUIET
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(self.port)],
            env=self._settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._listens)

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def hang(self) -> None:
        """From now on it accepts connections and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def read_line(capfd: pytest.CaptureFixture[str]) -> str:
    """What stderr says next."""
    said = ""

    def is_complete() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return said.endswith("\n")

    wait_for(is_complete)
    return said


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database made once: its migrations take seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    code = (
        "import sys, mlflow\n"
        "mlflow.MlflowClient(tracking_uri='sqlite:///' + sys.argv[1]).search_experiments()"
    )
    command = [sys.executable, "-c", code, str(path)]
    subprocess.run(command, env=os.environ | QUIET, check=True, capture_output=True)
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The tracking server of this test, as the project finds it by default."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return Database(tmp_path / "mlflow.db")


@pytest.fixture
def server(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
    yield server
    server.stop()
