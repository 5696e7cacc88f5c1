"""Tracking into real MLflow on SQLite: one run a training, every step once, nobody waits."""

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fvlm.tracking import tracker as module
from fvlm.tracking.runs import run_names
from fvlm.tracking.sender import curves
from fvlm.tracking.tracker import (
    TRAINED_WEIGHTS,
    Status,
    Tracker,
    flatten,
    send_results,
    tell_gpu_is_unseen,
)
from tests.tracking.conftest import PATIENCE_SECONDS, read_line, wait_for

ROOT = Path(__file__).parents[2]
PARAMS = {"train": {"lr": 0.001, "betas": [0.9, 0.95]}, "seed": 7}
TAGS = {"git_commit": "0123456789ab", "data": "d4", "weights": "e5"}


def row(step: int) -> dict[str, float]:
    """As the training loop writes it."""
    losses = {"loss": 1 / (step + 1), "loss_coarse": 3.0, "loss_fine": 2.0}
    return {"step": step, "samples": 8 * (step + 1), **losses}


def start(name: str = "first", history: int = 0) -> Tracker:
    """A training that resumes after so many steps."""
    tracker = Tracker(name, title="seed 7", params=PARAMS, tags=TAGS)
    tracker.log_history(row(step) for step in range(history))
    return tracker


def log_steps(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.log(row(step), memory_gib=1.5)


def close(tracker: Tracker, status: Status) -> None:
    tracker.close(status=status, deadline_seconds=PATIENCE_SECONDS)


def test_nested_parameters_become_dotted_names() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1, 2]}) == {
        "a.b.c": "1",
        "a.d": "None",
        "e": "[1, 2]",
    }


def test_curves_have_the_ratio_and_end_with_the_step() -> None:
    found = curves({"step": 3, "loss_coarse": 3.0, "loss_fine": 2.0})
    assert found == {
        "coarse_fine_ratio": 1.5,
        "improvement_pct": 50.0,
        "loss_coarse": 3.0,
        "loss_fine": 2.0,
        "step": 3,
    }
    assert list(found)[-1] == "step"
    shown = curves({"step": 3, "val_loss_coarse": 3.0, "val_loss_fine": 2.0})
    assert shown["val_coarse_fine_ratio"] == 1.5
    assert (
        curves({"step": 3, "loss_coarse": 3.0, "loss_fine": 0.0}).get("coarse_fine_ratio") is None
    )


def test_a_stopped_and_resumed_training_is_one_run_with_every_step_once(database: Any) -> None:
    first = start()
    log_steps(first, range(10))
    close(first, "KILLED")
    assert database.runs() == [("0123456 seed 7", "KILLED")]

    second = start(history=6)  # the checkpoint lacks what MLflow has
    log_steps(second, range(6, 15))
    close(second, "FINISHED")
    assert database.runs() == [("0123456 seed 7", "FINISHED")]
    for metric in ("loss", "coarse_fine_ratio", "improvement_pct", "memory_gib", "step"):
        assert database.steps(metric) == list(range(15)), metric
    assert database.rows("select value from metrics where key='loss' and step=3") == [(0.25,)]
    assert len(database.steps("samples_per_second")) > 10  # of a start's first step it is unknown
    assert dict(database.rows("select key, value from params")) == {
        "train.lr": "0.001",
        "train.betas": "[0.9, 0.95]",
        "seed": "7",
    }
    tags = dict(database.rows("select key, value from tags"))
    assert TAGS.items() <= tags.items()
    assert tags["fvlm.training"] == "first"

    before = database.rows("select * from runs"), database.rows("select * from metrics")
    close(start(history=15), "FINISHED")  # handed back
    assert (database.rows("select * from runs"), database.rows("select * from metrics")) == before

    third = start()
    log_steps(third, range(2))  # trained again, from the start
    close(third, "FINISHED")
    assert [status for _, status in database.runs()] == ["FINISHED", "FINISHED"]
    assert Counter(database.steps("loss")) == Counter([*range(15), 0, 1])


def test_a_deleted_database_gets_the_whole_history_again(
    database: Any, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brave-owl")
    first = start()
    log_steps(first, range(5))
    close(first, "KILLED")
    shutil.copy(empty_database, database.path)
    second = start(history=5)
    log_steps(second, range(5, 8))
    close(second, "FINISHED")
    assert database.runs() == [("brave-owl seed 7", "FINISHED")]
    assert database.steps("loss") == list(range(8))
    assert ("brave-owl",) in database.rows("select value from tags where key='dvc_experiment'")


TRAINING = """
import time
from tests.tracking.test_tracker import log_steps, start
tracker = start()
log_steps(tracker, range(50))
print(tracker._child.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_training_loses_nothing_and_shows_as_killed(database: Any) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING], stdout=subprocess.PIPE, cwd=ROOT
    ) as training:
        assert training.stdout is not None
        assert int(training.stdout.readline())
        training.kill()
    wait_for(lambda: [status for _, status in database.runs()] == ["KILLED"])
    assert database.steps("loss") == list(range(50))
    again = start(history=10)  # it fails before it has got as far as before
    log_steps(again, range(10, 20))
    close(again, "FAILED")
    assert [status for _, status in database.runs()] == ["FAILED"]
    assert database.steps("loss") == list(range(50))


def test_the_sender_of_a_killed_training_leaves_the_next_one_alone(database: Any) -> None:
    command, pipe = [sys.executable, "-c", TRAINING], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=ROOT) as training:
        assert training.stdout is not None
        assert training.stderr is not None
        sender = int(training.stdout.readline())
        training.kill()
        training.wait()
        os.kill(sender, signal.SIGSTOP)  # still importing mlflow
        again = start(history=5)
        log_steps(again, range(5, 60))
        close(again, "FINISHED")
        os.kill(sender, signal.SIGCONT)
        assert training.stderr.read() == b""  # until it has ended, too
    assert [status for _, status in database.runs()] == ["FINISHED"]
    assert database.steps("loss") == list(range(60))


def test_system_metrics_are_recorded_and_the_training_stays_free_of_mlflow(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    with start() as tracker:
        log_steps(tracker, range(3))
        wait_for(lambda: len(database.steps("system/cpu_utilization_percentage")) > 1)
        assert database.steps("loss") == [0, 1, 2]  # already during the training
    assert database.steps("system/system_memory_usage_megabytes")
    check = "import sys, fvlm.tracking.tracker; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


def test_two_trainings_share_a_new_database(
    database: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    database.path.unlink()
    trackers = [start(name) for name in ("a", "b")]
    for tracker in trackers:
        log_steps(tracker, range(20))
    threads = [threading.Thread(target=close, args=(t, "FINISHED")) for t in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for _, status in database.runs()] == ["FINISHED"] * 2
    assert Counter(database.steps("loss")) == dict.fromkeys(range(20), 2)
    assert capfd.readouterr().err == ""


def test_a_locked_database_is_waited_for(database: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(database.path, check_same_thread=False)) as other:
        other.execute("begin exclusive")
        tracker = start()
        log_steps(tracker, range(5))
        threading.Timer(5, other.rollback).start()
        close(tracker, "FINISHED")
    assert database.steps("loss") == list(range(5))
    assert capfd.readouterr().err == ""


def test_a_sender_that_stands_still_is_not_waited_for(database: Any) -> None:
    tracker = start()
    assert tracker._child is not None
    os.kill(tracker._child.pid, signal.SIGSTOP)
    log_steps(tracker, range(400))  # far more than a pipe holds
    assert len(tracker._pending) > 0
    os.kill(tracker._child.pid, signal.SIGCONT)
    close(tracker, "FINISHED")
    assert database.steps("loss") == list(range(400))


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError(), "FAILED"), (SystemExit(75), "KILLED"), (None, "FINISHED")]
)
def test_an_exception_decides_the_status(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException | None,
    status: str,
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with (tmp_path / "sent").open("wb") as file:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file, bufsize=0)
        monkeypatch.setattr(module, "_start_child", lambda: child)
        start().__exit__(type(error) if error else None, error, None)
    (*_, last) = (tmp_path / "sent").read_text().splitlines()
    assert json.loads(last)["status"] == status


def test_a_folder_that_cannot_be_written_and_a_killed_sender_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / ".state").write_text("in the way")
    with start() as tracker:
        log_steps(tracker, range(3))
    (line,) = capfd.readouterr().err.splitlines()
    assert "training goes on untracked" in line
    (tmp_path / ".state").unlink()
    for logs in (True, False):
        with start() as tracker:
            assert tracker._child is not None
            tracker._child.kill()
            tracker._child.wait()
            log_steps(tracker, range(3 if logs else 0))
        (line,) = capfd.readouterr().err.splitlines()
        assert ("training goes on untracked" if logs else "was killed") in line


def test_a_deleted_experiment_is_told_at_once_with_its_remedy(
    database: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(database.path)) as other:
        other.execute("update experiments set name = 'fvlm', lifecycle_stage = 'deleted'")
        other.commit()
    tracker = start()
    log_steps(tracker, range(5))
    said = read_line(capfd)  # while the training goes on
    setting, *command = shlex.split(said.partition("restore it: ")[2].partition(")")[0])
    monkeypatch.setenv(*setting.split("="))
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    log_steps(tracker, range(5, 8))
    close(tracker, "FINISHED")
    assert database.steps("loss") == list(range(8))
    assert capfd.readouterr().err == ""


def test_results_reach_the_run_of_their_training_once(database: Any, tmp_path: Path) -> None:
    report = tmp_path / "index.html"
    values: dict[str, float | str | None] = {"ratio": 1.25, "verdict": "sees better", "low": None}
    report.write_text("first")
    send_results("first", values, [report])  # MLflow was away when it was trained
    close(start(history=3), "FINISHED")
    report.write_text("second")
    before = database.rows("select * from runs")
    send_results("first", values | {"git_commit": "another"}, [report])
    assert database.rows("select * from runs") == before
    tags = dict(database.rows("select key, value from tags"))
    assert tags["git_commit"] == TAGS["git_commit"]  # of the training
    assert database.steps("loss") == [0, 1, 2]
    assert database.rows("select value from metrics where key='evaluation/ratio'") == [(1.25,)]
    assert database.rows("select value from tags where key='verdict'") == [("sees better",)]
    assert not database.steps("evaluation/low")
    (stored,) = (tmp_path / ".state/mlflow/artifacts").rglob("index.html")
    assert stored.read_text() == "second"
    found = {TRAINED_WEIGHTS: "0123"}
    for _ in range(2):  # of a training whose steps did not reach MLflow
        send_results("second", found, title="seed 3", history=[row(0), row(1)])
    assert Counter(database.steps("loss")) == {0: 2, 1: 2, 2: 1}
    assert run_names() == {"0123": "second seed 3"}


@pytest.mark.usefixtures("database")
def test_switched_off_nothing_is_started_and_nothing_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FVLM_TRACKING", "off")
    monkeypatch.setattr(module, "_start_child", lambda: pytest.fail("was started"))
    with start() as tracker:
        log_steps(tracker, range(3))
    send_results("first", {"ratio": 1.25}, [tmp_path / "index.html"])
    assert capfd.readouterr().err == ""


def test_a_gpu_that_cannot_be_watched_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for spec, lines in ((None, 1), (object(), 0)):
        tell_gpu_is_unseen.cache_clear()
        monkeypatch.setattr(module, "find_spec", lambda _, spec=spec: spec)
        for _ in range(2):
            tell_gpu_is_unseen()
        said = capfd.readouterr().err.splitlines()
        assert len(said) == lines
        assert all("nvidia-ml-py" in line for line in said)
