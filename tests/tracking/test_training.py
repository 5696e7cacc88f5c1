"""The train stage with real MLflow and with servers that fail: same training, one run."""

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fvlm.tracking.tracker import Tracker
from pipeline import train
from tests.pipeline.test_train import RESULTS, curves, write_inputs
from tests.tiny import set_params
from tests.tracking.conftest import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_inputs(tmp_path)  # leaves a file in the place of the lock: nothing is tracked
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accepts connections and hangs, or dies instead of an answer, or is not there."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening.getsockname()[1]}")

        def die() -> None:
            while True:
                try:
                    listening.accept()[0].close()
                except OSError:
                    return

        if request.param == "dies":
            threading.Thread(target=die, daemon=True).start()
        if request.param == "refuses":
            listening.close()
        yield
        if request.param != "refuses":
            listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "server", ["hangs", "dies", pytest.param("refuses", marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.usefixtures("server")
def test_a_server_that_fails_changes_no_bit(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train.main()
    untracked = [(project / path).read_bytes() for path in RESULTS]
    shutil.rmtree(".state/train")
    Path(".state/mlflow").unlink()
    capfd.readouterr()
    train.main()
    assert [(project / path).read_bytes() for path in RESULTS] == untracked
    assert "Training is not affected" in capfd.readouterr().err


def test_a_stopped_and_resumed_training_is_one_run(
    project: Path, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps go out at the end, where MLflow was away when they were made.

    Trained longer, it is another run, which has all steps.
    """
    set_params(project, {"train": {"max_hours": 1e-9, "schedule": "constant"}})
    for tracked, steps in ((False, 0), (True, 2)):
        if tracked:
            Path(".state/mlflow").unlink()
            kept = {"deadline_seconds": PATIENCE_SECONDS}
            monkeypatch.setattr(Tracker.close, "__kwdefaults__", kept)
        with pytest.raises(SystemExit):
            train.main()
        assert database.steps("loss_fine") == list(range(steps))
    assert [status for _, status in database.runs()] == ["KILLED"]
    set_params(project, {"train": {"max_hours": 1.0}})
    train.main()
    (state,) = (path.parent for path in Path(".state/train").glob("*/finished.json"))
    assert database.runs() == [(f"{state.name[:7]} seed 0", "FINISHED")]  # no git repository
    for metric in curves(project)[0]:
        assert database.steps(metric) == list(range(6)), metric
    tags = dict(database.rows("select key, value from tags"))
    assert tags["fvlm.training"] == state.name
    assert {"git_commit", "data", "weights"} <= set(tags)
    assert ("train.lr", "0.001") in database.rows("select key, value from params")
    set_params(project, {"train": {"max_samples": 56}})
    train.main()
    longer = "select count(*) from metrics where key = 'loss_fine' group by run_uuid order by 1"
    assert database.rows(longer) == [(6,), (7,)]
    budgets = "select value from params where key = 'train.max_samples' order by 1"
    assert database.rows(budgets) == [("48",), ("56",)]
