"""The train stage with real MLflow and with servers that fail: same training, one run."""

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fvlm.tracking import Tracker
from pipeline import train
from tests.pipeline.test_train import RESULTS, write_inputs
from tests.tiny import set_params

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 90.0  # on a busy machine the sender, which gives way, is slow to start


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_inputs(tmp_path)  # leaves a file in the place of the spools: nothing is tracked
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accepts connections; then it hangs, or dies instead of an answer."""
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
        yield
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("server", ["hangs", "dies"], indirect=True)
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
    Path(".state/mlflow").unlink()
    monkeypatch.setattr(Tracker.close, "__kwdefaults__", {"deadline_seconds": PATIENCE_SECONDS})
    set_params(project, {"train": {"max_hours": 1e-9}})
    with pytest.raises(SystemExit):
        train.main()
    (state,) = Path(".state/train").iterdir()
    assert database.runs() == [(state.name, "KILLED")]
    set_params(project, {"train": {"max_hours": 1.0}})
    train.main()
    assert database.runs() == [(state.name, "FINISHED")]
    assert database.steps("loss_fine") == list(range(6))
