import io
import re
import sys

import pytest

from fvlm.core.progress import LINE_SECONDS, Progress


class Clock:
    """Time that moves only when told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Progress("filter", total=40, unit="video", clock=clock) as progress:
        for _ in range(40):
            clock.seconds += LINE_SECONDS / 20
            progress.advance(too_short=3)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "filter: 20/40 videos, 2.00 videos/s, 10 s left, too short 3",
        "filter: 40/40 videos, 2.00 videos/s, too short 3",
    ]


def test_work_done_before_does_not_count_as_speed(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("train", total=100, unit="step", initial=90, clock=clock) as progress:
        clock.seconds += 5
        progress.advance(5)
    assert capsys.readouterr().err == "train: 95/100 steps, 1.00 steps/s, 5 s left\n"


def test_nothing_done_gives_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("encode", total=0, unit="shard"):
        pass
    with Progress("encode", total=3, unit="shard"):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "encode: 0/0 shards, 0.00 shards/s",
        "encode: 0/3 shards, 0.00 shards/s",
    ]


def test_the_last_state_is_shown_when_the_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), Progress("decode", total=9, unit="video") as progress:  # noqa: PT012
        progress.advance(4)
        raise RuntimeError
    assert capsys.readouterr().err.startswith("decode: 4/9 videos")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("filter", total=4, unit="video") as progress:
        progress.advance(4, too_short=3)
    assert re.search(r"filter: 100%.* 4/4 .*too_short=3", terminal.getvalue())


def test_skipped_units_are_no_speed(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("encode", total=100, unit="clip", clock=clock) as progress:
        progress.skip(90, reused=90)
        clock.seconds += 5
        progress.advance(5)
    assert capsys.readouterr().err == "encode: 95/100 clips, 1.00 clips/s, 5 s left, reused 90\n"
