"""How long the sending process waits for whom, once the training has ended."""

import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fvlm.tracking import sender

LONG = 60.0  # seconds; nothing here waits that long


class Sender:
    """In the place of the one that asks MLflow: starts and answers when it is told to."""

    starts, answers = threading.Event(), threading.Event()

    def __init__(self, _: Path) -> None:
        self.starts.wait(LONG)

    def open(self) -> None:
        self.answers.wait(LONG)

    def send(self) -> None:
        pass


class Recorded(threading.Event):
    """An event that notes for how long it was waited for, and does not wait."""

    def __init__(self, *, happened: bool) -> None:
        super().__init__()
        self.waits: list[float | None] = []
        if happened:
            self.set()

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return self.is_set()


@pytest.fixture
def delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """With a server, and a training that has ended."""
    for event in ("starts", "answers"):
        monkeypatch.setattr(Sender, event, threading.Event())
    monkeypatch.setattr(sender, "_Sender", Sender)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    made = sender._Delivery(tmp_path)
    made.ended.set()
    yield made
    Sender.starts.set()
    Sender.answers.set()


def joins(delivery: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long the sending itself is waited for, which then ends at once."""
    found: list[float] = []
    monkeypatch.setattr(delivery, "join", found.append)
    return found


@pytest.mark.parametrize("answered", [False, True])
def test_a_server_has_seconds_to_answer_and_then_all_the_time(
    delivery: Any, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    joined = joins(delivery, monkeypatch)
    delivery.asked, delivery.answered = Recorded(happened=True), Recorded(happened=answered)
    delivery.wait(LONG)
    assert delivery.asked.waits == [LONG]  # mlflow may take long to import
    assert delivery.answered.waits == [sender.ANSWER_SECONDS]
    assert [round(seconds) for seconds in joined] == ([round(LONG)] if answered else [])


def test_a_database_in_a_file_has_all_the_time(
    delivery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    joined = joins(delivery, monkeypatch)
    delivery.asked, delivery.answered = Recorded(happened=True), Recorded(happened=False)
    delivery.wait(LONG)
    assert [round(seconds) for seconds in joined] == [round(LONG)]


def test_the_seconds_begin_when_the_server_is_asked(delivery: Any) -> None:
    delivery.start()
    assert not delivery.asked.wait(0.05)
    Sender.starts.set()
    assert delivery.asked.wait(LONG)
    assert not delivery.answered.is_set()
    Sender.answers.set()
    assert delivery.answered.wait(LONG)
    delivery.wait(LONG)
    assert delivery.is_sent


def test_an_mlflow_that_cannot_start_is_not_waited_for(
    delivery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(spool: Path) -> None:
        raise ImportError(f"no mlflow for {spool}")

    monkeypatch.setattr(sender, "_Sender", broken)
    monkeypatch.setattr(sender, "LAST_ATTEMPTS", 1)
    delivery.start()
    assert delivery.asked.wait(LONG)
    assert "ImportError" in delivery.problem


def test_the_process_ends_with_the_wait(
    delivery: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says that nothing was sent, and leaves the thread that hangs behind."""
    waits: list[float] = []
    codes: list[int] = []
    monkeypatch.setattr(delivery, "wait", waits.append)
    monkeypatch.setattr(sender, "_Delivery", lambda _: delivery)
    monkeypatch.setattr(os, "nice", lambda _: 0)
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(sender, "MLFLOW_SETTINGS", {})
    monkeypatch.setattr(sys, "stdin", io.StringIO("27.0\n"))
    sender._main(Path("spool"), follow=True)
    assert (waits, codes) == ([27.0], [0])
    assert "no answer in time" in capsys.readouterr().out
