"""Claims on names: who makes what, among real processes."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fvlm.core.kept import Claims
from tests.imports import ROOT

HOLDER = """
import sys
from pathlib import Path
from fvlm.core.kept import Claims
claims = Claims(Path(sys.argv[1]))
print(*map(claims.take, sys.argv[2:]), flush=True)
for line in sys.stdin:
    claims.release(line.strip())
"""
Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """hold("a1", "b2"): a process that has claimed these names; it gives up those it is told."""
    with ExitStack() as stack:

        def start(*names: str) -> "subprocess.Popen[str]":
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLDER, str(tmp_path), *names],
                    env={"PYTHONPATH": str(ROOT)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline().split() == ["True"] * len(names)
            return process

        yield start


def test_each_process_that_is_waited_for_is_named_once(
    tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a run that wants a thousand shards of another one says so a thousand times."""
    first, second = hold("a1", "b2", "c3"), hold("d4")
    holders = {"a1": first, "b2": first, "c3": first, "d4": second}
    asked = Claims._holder

    def ask(claims: Claims, name: str) -> str:
        """It has the name when it is asked for, and gives it up then."""
        found, pipe = asked(claims, name), holders[name].stdin
        assert pipe is not None
        print(name, file=pipe, flush=True)
        return found

    monkeypatch.setattr(Claims, "_holder", ask)
    with Claims(tmp_path) as claims:
        for name in holders:
            assert not claims.take(name)
            claims.wait(name, f"what {name} stands for")
    assert capsys.readouterr().err.splitlines() == [
        f"waiting for process {first.pid}, which makes what a1 stands for",
        f"waiting for process {second.pid}, which makes what d4 stands for",
    ]


def test_a_name_is_free_when_the_process_that_claimed_it_is_killed(
    tmp_path: Path, hold: Hold
) -> None:
    process = hold("a1")
    with Claims(tmp_path) as claims:
        assert not claims.take("a1")
        process.kill()
        process.wait()
        assert claims.take("a1")
