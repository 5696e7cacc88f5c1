"""The train stage with real MLflow and with servers that fail: same training, one run."""

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fvlm.core.io import write_json
from fvlm.tracking.tracker import Status, Tracker
from pipeline import train
from tests.pipeline.test_train import RESULTS, curves, write_inputs
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


class RecordingTracker(Tracker):
    """Sends nothing; `calls` has the settings, rows and endings of all trackers."""

    calls: ClassVar[list[Any]] = []

    def __init__(self, **settings: Any) -> None:
        self.calls.append(settings)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.calls.append((step, values["loss"]))

    def close(self, *, status: Status, deadline_seconds: float = 0) -> None:
        self.calls.append(f"{status} {deadline_seconds}")


def test_every_step_is_tracked_in_the_run_of_its_training(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".state/mlflow").unlink()
    monkeypatch.setattr(train, "Tracker", RecordingTracker)
    monkeypatch.setattr(train, "read_sent", lambda spool: {"run_id": f"run of {spool.name}"})
    calls: list[Any] = []
    monkeypatch.setattr(RecordingTracker, "calls", calls)
    set_params(project, {"train": {"max_hours": 1e-9}})
    with pytest.raises(SystemExit):
        train.main()
    set_params(project, {"train": {"max_hours": 1.0}})
    train.main()
    (state,) = Path(".state/train").iterdir()
    settings = [call for call in calls if isinstance(call, dict)]
    assert settings[0] == settings[1]
    assert settings[0]["run_name"] == settings[0]["spool"].name == state.name
    assert settings[0]["run_id"] == f"run of {state.name}"
    assert settings[0]["params"]["train"]["lr"] == 3e-4
    losses = [(int(row["step"]), row["loss"]) for row in curves(project)]
    assert [call for call in calls if isinstance(call, tuple)] == losses
    endings = [call.split()[0] for call in calls if isinstance(call, str)]
    assert endings == ["KILLED", "KILLED", "FINISHED"]


@pytest.mark.usefixtures("project")
def test_spools_of_forgotten_trainings_go_once_they_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".state/mlflow").unlink()
    monkeypatch.setattr(train, "Tracker", RecordingTracker)
    train.main()
    (state,) = Path(".state/train").iterdir()
    finished, killed = b'{"status": "FINISHED"}\n', b'{"status": "KILLED"}\n'
    spools = [
        (state.name, finished, True, True),
        ("sent", killed + finished, True, False),
        ("unsent", finished, False, True),
        ("unfinished", finished + killed, True, True),
    ]
    for name, rows, sent, _ in spools:
        write_json(
            Path(".state/mlflow") / name / "sent.json",
            {"run_id": "r", "offset": len(rows) if sent else 0},
        )
        (Path(".state/mlflow") / name / "rows.jsonl").write_bytes(rows)
    train.main()
    for name, _, _, stays in spools:
        assert (Path(".state/mlflow") / name).is_dir() == stays, name


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


@pytest.mark.slow
def test_a_server_that_refuses_changes_no_bit(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    train.main()
    untracked = [(project / path).read_bytes() for path in RESULTS]
    shutil.rmtree(".state/train")
    Path(".state/mlflow").unlink()
    train.main()
    assert [(project / path).read_bytes() for path in RESULTS] == untracked
    assert "training goes on untracked" in capfd.readouterr().err
    (rows,) = Path(".state/mlflow").glob("*/rows.jsonl")
    steps = [json.loads(line).get("step") for line in rows.read_text().splitlines() if line]
    assert [step for step in steps if step is not None][:6] == list(range(6))
