"""Tracking against servers that refuse, hang and die: nothing is lost, nobody waits."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fvlm.tracking.tracker import Status, Tracker

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


def close(tracker: Tracker, status: Status, *, deadline_seconds: float) -> None:
    """Close it in a thread: a tracker that waits for its server then fails the test."""
    options = {"status": status, "deadline_seconds": deadline_seconds}
    closing = threading.Thread(target=tracker.close, kwargs=options, daemon=True)
    closing.start()
    wait_for(lambda: not closing.is_alive())


class Server:
    """The few calls of an MLflow server that a run needs; refuses until `open`, hangs on demand."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, int]] = []
        self.status = ""
        self.hangs = False
        self.asked = threading.Event()
        self.release = threading.Event()
        self.port = 0

    def open(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.asked.set()
                if server.hangs:
                    server.release.wait()
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
    close(tracker, "KILLED", deadline_seconds=100 * PATIENCE_SECONDS)  # it gives up by itself
    (line,) = capfd.readouterr().err.splitlines()
    assert "ConnectionRefusedError" in line
    assert str(spool) in line

    server.open()
    tracker = start(spool, tracker.run_id)
    log_steps(tracker, range(8, 12))
    tracker.close(status="FINISHED", deadline_seconds=PATIENCE_SECONDS)
    # Sent twice when the server dies before the sender has noted it; MLflow stores them once.
    assert sorted({step for name, step in server.metrics if name == "loss"}) == list(range(12))
    assert server.status == "FINISHED"
    assert tracker.run_id == "r1"


def test_a_server_that_hangs_is_left_at_the_deadline_and_served_later(
    database: Any,
    server: Server,
    spool: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")  # nothing but the deadline ends it
    server.hangs = True
    tracker = start(spool)
    wait_for(server.asked.is_set)
    log_steps(tracker, range(1000))  # returns, although the server hangs until the test has ended
    close(tracker, "FINISHED", deadline_seconds=10)
    assert not server.release.is_set()
    (line,) = capfd.readouterr().err.splitlines()
    assert "no answer in time" in line
    assert tracker.run_id is None

    command = [sys.executable, "-m", "fvlm.tracking.sender", str(spool)]  # the training is over
    settings = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{database.path}"}
    subprocess.run(command, cwd=ROOT, env=settings, check=True, capture_output=True)
    assert database.runs() == [("first", "FINISHED")]
    assert database.steps("loss") == list(range(1000))
