"""Real MLflow on SQLite: a database for each test, read without mlflow."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest


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
