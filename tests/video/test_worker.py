"""The sandbox: whatever one item does, it costs that item only."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvlm.core import identity
from fvlm.core.errors import FvlmError, VideoError
from fvlm.video import worker
from fvlm.video.reasons import Reason
from fvlm.video.sandbox import OPEN_FILES, STDERR_BYTES
from fvlm.video.worker import AHEAD, Outcome, map_isolated

FOLDER = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


def misbehave(how: str, **more: Any) -> tuple[Outcome | VideoError, bool]:
    """The outcome of one bad item, and whether good items around it came through."""
    requests = [{"how": "well"}, {"how": how, **more}, {"how": "well", "again": True}]
    outcomes = list(
        map_isolated(
            "worker_functions:misbehave",
            requests,
            workers=1,
            processor_seconds={"spin": 0.2, "fork": 0.2, "use up": 1}.get(how, 30),
            memory_bytes=2**29,
        )
    )
    assert len(outcomes) == 3
    good = [outcome for request, outcome in outcomes if request["how"] == "well"]
    bad = [outcome for request, outcome in outcomes if request["how"] == how]
    return bad[0], all(isinstance(outcome, Outcome) for outcome in good)


@pytest.mark.parametrize(
    ("how", "reason", "message"),
    [
        ("segfault", Reason.CRASHED, "Segmentation fault"),
        ("killed", Reason.CRASHED, "Killed"),
        ("leave", Reason.CRASHED, "exit code 3"),
        ("exit", Reason.CRASHED, "SystemExit"),
        ("type", Reason.CRASHED, "TypeError: a bug"),
        ("not json", Reason.CRASHED, "not JSON serializable"),
        ("memory", Reason.OUT_OF_MEMORY, ""),
        ("spin", Reason.TIMEOUT, "no result after 2 seconds"),
        ("fork", Reason.TIMEOUT, ""),
        ("use up", Reason.TIMEOUT, "used up its 1 seconds of processor time"),
        ("refuse", Reason.UNREADABLE, "no such thing"),
    ],
)
def test_a_bad_item_costs_itself_only(how: str, reason: Reason, message: str) -> None:
    outcome, others_survive = misbehave(how)
    assert isinstance(outcome, VideoError)
    assert outcome.reason == reason
    assert message in str(outcome)
    assert others_survive


def test_a_forked_child_dies_with_its_group() -> None:
    misbehave("fork")
    assert not _children_of_sandboxes()


def test_prints_do_not_reach_the_protocol() -> None:
    outcome, others_survive = misbehave("print")
    assert isinstance(outcome, Outcome)
    assert others_survive


def test_prints_cannot_grow() -> None:
    outcome, others_survive = misbehave("large print")
    assert isinstance(outcome, VideoError)
    assert others_survive


@pytest.mark.parametrize("junk", ["ff" * 64, "00" * 64, "00" * 7 + "05" + "00" * 8 + "7b7d7b7d7b"])
def test_a_reply_that_makes_no_sense_is_a_crash(junk: str) -> None:
    requests = [{"hex": junk}]
    [(_, outcome)] = map_isolated("worker_functions:nonsense", requests, processor_seconds=0.1)
    assert isinstance(outcome, VideoError)
    assert outcome.reason in (Reason.CRASHED, Reason.TIMEOUT)


def test_every_item_is_answered_once_and_workers_are_reused() -> None:
    requests = [{"number": number, "name": f"\udcff{number}\n"} for number in range(300)]
    outcomes = list(map_isolated("worker_functions:echo", iter(requests), workers=2))
    assert {request["number"] for request, _ in outcomes} == set(range(300))
    assert len(outcomes) == 300
    pids = set()
    for request, outcome in outcomes:
        assert isinstance(outcome, Outcome)
        assert outcome.values["name"] == request["name"]
        pids.add(outcome.values["pid"])
    assert len(pids) <= 2


def test_arrays_cross_unchanged() -> None:
    requests = [{"value": value, "size": 500_000} for value in range(4)]
    for request, outcome in map_isolated("worker_functions:arrays", requests, workers=2):
        assert isinstance(outcome, Outcome)
        assert outcome.arrays["frames"].dtype == np.uint8
        np.testing.assert_array_equal(outcome.arrays["frames"], request["value"])
        np.testing.assert_array_equal(outcome.arrays["turned"], np.arange(6.0).reshape(2, 3).T)


def test_code_that_is_edited_while_videos_are_read_reads_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that replaces another one would import it, and its results have the old name."""
    code = Path(__file__).parents[2] / "fvlm"
    shutil.copytree(code, tmp_path / "fvlm", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    monkeypatch.setattr(worker, "ITEMS_PER_WORKER", 1)
    requests = [{"path": f"missing {number}"} for number in range(9)]
    results = map_isolated("fvlm.video.probe:probe_request", requests, workers=1)
    next(results)
    edited = tmp_path / "fvlm/video/container.py"
    edited.write_text(edited.read_text() + "MORE = 1\n")
    with pytest.raises(FvlmError, match=r"fvlm.video.container was edited while this ran"):
        list(results)


def test_few_items_are_taken_ahead() -> None:
    taken = 0

    def requests() -> Any:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield {"number": number}

    results = map_isolated("worker_functions:echo", requests(), workers=2)
    for done in range(1, 11):
        next(results)
        assert taken <= done + 4
    results.close()


def test_a_slow_caller_is_not_held_against_the_workers() -> None:
    requests = [{"how": "sleep", "seconds": 0.2, "number": number} for number in range(4)]
    results = map_isolated("worker_functions:misbehave", requests, workers=2, processor_seconds=0.1)
    for _, outcome in results:
        assert isinstance(outcome, Outcome), outcome
        time.sleep(1.1)


def test_closing_early_leaves_no_process() -> None:
    requests = [{"how": "well"}, {"how": "spin"}, {"how": "spin"}]
    results = map_isolated("worker_functions:misbehave", requests, workers=2)
    next(results)
    results.close()
    assert not _children_of_sandboxes()


def test_no_items_start_no_worker() -> None:
    assert list(map_isolated("worker_functions:echo", [])) == []


def test_workers_die_with_a_killed_parent() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from fvlm.video.worker import map_isolated\n"
        "items = [{'how': 'well'}, {'how': 'spin'}]\n"
        "for item, outcome in map_isolated('worker_functions:misbehave', items, workers=2):\n"
        "    print('ready', flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, FOLDER],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        workers = _processes_mentioning("worker_functions:misbehave", str(parent.pid))
        assert workers
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(_is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_running(pid) for pid in workers)


def test_a_worker_has_limits() -> None:
    more, outcome = (
        outcome
        for _, outcome in map_isolated(
            "worker_functions:limits",
            [{"processor_seconds": 300.0}, {}],
            processor_seconds=30,
            memory_bytes=2**29,
            workers=1,
        )
    )
    assert isinstance(more, Outcome)
    assert 300 < more.values["CPU"][0] < 330  # of an item that names its own
    assert isinstance(outcome, Outcome)
    soft, _ = outcome.values.pop("CPU")
    assert 30 < soft < 60  # counted from what start-up took
    expected = {"AS": 2**29, "FSIZE": STDERR_BYTES, "NOFILE": OPEN_FILES, "CORE": 0}
    assert outcome.values == {name: [limit, limit] for name, limit in expected.items()}


def test_an_item_is_told_of_its_own_limit() -> None:
    requests = [{"how": "use up", "processor_seconds": 1.0}]
    [(_, outcome)] = map_isolated("worker_functions:misbehave", requests, processor_seconds=30)
    assert isinstance(outcome, VideoError)
    assert outcome.reason == Reason.TIMEOUT
    assert "used up its 1 seconds" in str(outcome)


def test_without_a_choice_an_item_has_60_seconds_and_2_gibibytes() -> None:
    """As the table of odd files says."""
    [(_, outcome)] = map_isolated("worker_functions:limits", [{}], workers=1)
    assert isinstance(outcome, Outcome)
    assert 60 < outcome.values["CPU"][0] < 90  # counted from what start-up took
    assert outcome.values["AS"] == [2 * 2**30] * 2


def test_limits_of_the_user_may_be_lower_than_the_sandbox() -> None:
    """Without the right to raise a hard limit, which root has."""
    code = (
        "import os; from resource import *\n"
        "from fvlm.video.sandbox import _limit, _limit_processor\n"
        "setrlimit(RLIMIT_NOFILE, (48, 48)); setrlimit(RLIMIT_CPU, (1000, 1000))\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "_limit(2**31); print(getrlimit(RLIMIT_NOFILE))\n"
        "for seconds in (100, 2000, 100):\n"
        "    _limit_processor(seconds); print(getrlimit(RLIMIT_CPU)[0] > 500, end=' ')\n"
        "print(getrlimit(RLIMIT_CPU)[1])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, stdout=-1, check=True)
    assert done.stdout == b"(48, 48)\nFalse True False 1000\n"


def test_a_late_item_is_tried_once_more_while_no_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("WORKER_LOG", str(log))
    items = [{"number": number, "slow": number == 1} for number in range(40)]
    results = list(
        map_isolated("worker_functions:late_at_first", items, workers=3, processor_seconds=0.1)
    )
    assert all(isinstance(outcome, Outcome) for _, outcome in results)
    assert len(results) == 40
    begun: dict[int, float] = {}
    spans = {}
    for number, event, at in map(json.loads, log.read_text().splitlines()):
        if event == "end":
            spans[number] = begun[number], at
        begun[number] = at
    start, stop = spans.pop(1)
    assert all(end <= start or begin >= stop for begin, end in spans.values())


def test_an_item_that_is_late_twice_is_given_up() -> None:
    begin = time.monotonic()
    [(_, outcome)] = map_isolated(
        "worker_functions:misbehave", [{"how": "sleep", "seconds": 100}], processor_seconds=0.1
    )
    assert isinstance(outcome, VideoError)
    assert outcome.reason == Reason.TIMEOUT
    assert 2 <= time.monotonic() - begin < 60


def test_a_worker_is_replaced_after_some_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvlm.video.worker.ITEMS_PER_WORKER", 3)
    items = [{"number": number} for number in range(7)]
    pids: Counter[int] = Counter()
    for _, outcome in map_isolated("worker_functions:echo", items, workers=1):
        assert isinstance(outcome, Outcome)
        pids[outcome.values["pid"]] += 1
    assert list(pids.values()) == [3, 3, 1]


@pytest.fixture
def slow_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A function whose module takes two seconds to import."""
    code = "import time; time.sleep(2)\ndef echo(request): return request\n"
    (tmp_path / "slow_start.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    return "slow_start:echo"


def test_the_start_of_a_worker_is_not_held_against_its_item(slow_start: str) -> None:
    [(_, outcome)] = map_isolated(slow_start, [{}], processor_seconds=0.15)
    assert isinstance(outcome, Outcome), outcome


def test_a_first_item_has_no_more_time_than_others() -> None:
    begun = time.monotonic()
    items = [{"how": "sleep", "seconds": 50}]
    [(_, outcome)] = map_isolated("worker_functions:misbehave", items, processor_seconds=0.05)
    assert isinstance(outcome, VideoError)
    assert "no result after 0.5 seconds" in str(outcome)
    assert time.monotonic() - begun < 40


def test_a_worker_that_does_not_start(slow_start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvlm.video.worker.START_SECONDS", 0.2)
    [(_, outcome)] = map_isolated(slow_start, [{}])
    assert isinstance(outcome, VideoError)
    assert outcome.reason == Reason.TIMEOUT
    assert "not ready after 0.2 seconds" in str(outcome)


def test_in_order_waits_for_the_slow_one_and_begins_a_bounded_number() -> None:
    begun = 0

    def requests() -> Any:
        nonlocal begun
        for number in range(100):
            begun += 1
            yield {"how": "sleep", "seconds": 0.5 * (number == 0), "number": number}

    numbers: list[int] = []
    for request, outcome in map_isolated(
        "worker_functions:misbehave", requests(), workers=2, in_order=True
    ):
        assert isinstance(outcome, Outcome)
        assert begun <= len(numbers) + 2 * AHEAD
        numbers.append(request["number"])
    assert numbers == list(range(100))


def _children_of_sandboxes() -> list[int]:
    """Workers of this process that still run."""
    return _processes_mentioning("worker_functions:", str(os.getpid()))


def _processes_mentioning(*words: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if all(any(word in argument for argument in arguments[3:]) for word in words):
            found.append(int(folder.name))
    return [pid for pid in found if _is_running(pid)]


def _is_running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
