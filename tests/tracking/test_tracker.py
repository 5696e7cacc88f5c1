"""Tracking against real MLflow on SQLite."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fvlm.tracking.tracker import Tracker, flatten

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 90.0  # on a busy machine the sender, which gives way, is slow to start


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
    database: Any, spool: Path
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
    database: Any, spool: Path, empty_database: Path, capfd: pytest.CaptureFixture[str]
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
from fvlm.tracking.tracker import Tracker
tracker = Tracker(run_name="first", run_id=None, params={}, spool=Path(sys.argv[1]))
for step in range(50):
    tracker.log(step, {"loss": 1.0})
print("logged", flush=True)
time.sleep(60)
"""


def test_a_killed_training_loses_nothing_and_shows_as_killed(
    database: Any, spool: Path, monkeypatch: pytest.MonkeyPatch
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
    database: Any, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    with start(spool) as tracker:
        log_steps(tracker, range(3))
        wait_for(lambda: database.steps("system/cpu_utilization_percentage"))
        assert database.steps("loss") == [0, 1, 2]  # already during the training
    assert database.steps("system/system_memory_usage_megabytes")
    check = "import sys, fvlm.tracking.tracker; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


def test_two_trainings_share_a_new_database(
    database: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
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
    database: Any, spool: Path, capfd: pytest.CaptureFixture[str]
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
        "fvlm.tracking.tracker._start_child",
        lambda _: subprocess.Popen(idle, stdin=subprocess.PIPE),
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
