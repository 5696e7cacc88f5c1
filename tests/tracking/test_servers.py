"""Tracking into a real MLflow server that dies, hangs and refuses: nothing is lost."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from fvlm.tracking.sender import ANSWER_SECONDS
from tests.tracking.conftest import read_line, wait_for
from tests.tracking.test_tracker import close, log_steps, start


def test_a_server_that_dies_gets_the_rest_when_it_is_back(
    server: Any, database: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = start()
    log_steps(tracker, range(5))
    wait_for(lambda: 4 in database.steps("step"))
    server.stop()
    log_steps(tracker, range(5, 10))
    close(tracker, "KILLED")
    (line,) = capfd.readouterr().err.splitlines()
    assert "ConnectionRefusedError" in line
    assert "goes out when the stage runs again" in line
    server.start()
    close(start(history=10), "FINISHED")
    assert database.steps("loss") == list(range(10))
    assert [status for _, status in database.runs()] == ["FINISHED"]


def test_a_server_that_hangs_gets_seconds_if_it_never_answered_and_all_the_time_else(
    server: Any,
    database: Any,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")  # not that ends it
    server.hang()
    tracker = start()
    log_steps(tracker, range(20))
    ended = threading.Thread(target=tracker.close, kwargs=FOR_AN_HOUR, daemon=True)
    ended.start()
    wait_for(lambda: not ended.is_alive())
    (line,) = capfd.readouterr().err.splitlines()
    assert "no answer in time" in line

    server.go_on()
    tracker = start(history=20)
    wait_for(lambda: 19 in database.steps("step"))
    server.hang()
    log_steps(tracker, range(20, 25))
    ended = threading.Thread(target=tracker.close, kwargs=FOR_AN_HOUR, daemon=True)
    ended.start()
    time.sleep(2 * ANSWER_SECONDS)
    assert ended.is_alive()
    server.go_on()
    wait_for(lambda: not ended.is_alive())
    assert database.steps("loss") == list(range(25))
    assert [status for _, status in database.runs()] == ["FINISHED"]
    assert capfd.readouterr().err == ""


FOR_AN_HOUR = {"status": "FINISHED", "deadline_seconds": 3600.0}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that lets nobody in."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{http.server_port}")
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        yield
        http.shutdown()


@pytest.mark.usefixtures("database", "refused")
def test_a_refused_login_is_told_at_once_with_its_remedy_and_no_password(
    capfd: pytest.CaptureFixture[str],
) -> None:
    tracker = start()
    said = read_line(capfd)  # while the training goes on
    log_steps(tracker, range(3))
    close(tracker, "FINISHED")
    assert "401" in said
    assert "MLFLOW_TRACKING_USERNAME" in said
    assert "secret" not in said
    assert capfd.readouterr().err == ""
