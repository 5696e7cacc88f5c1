import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fvlm.core import machine
from fvlm.core.device import peak_memory_gib
from fvlm.core.machine import core_count


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_resident_memory_is_counted_in_the_unit_of_the_platform(
    platform: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(machine, "core_count", lambda: 4)
    usage = SimpleNamespace(ru_maxrss=3 * 2**30 // unit)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    assert peak_memory_gib(torch.device("cpu")) == 3
    assert machine.peak_memory_gib() == 3 + 4 * 3


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert core_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert core_count() == 12


RESET = """
import torch
from fvlm.core.device import peak_memory_gib, reset_peak_memory

cpu = torch.device("cpu")
torch.ones(2**29, dtype=torch.uint8)  # freed at once
high = peak_memory_gib(cpu)
reset_peak_memory(cpu)
assert peak_memory_gib(cpu) < high - 0.4
torch.ones(2**29, dtype=torch.uint8)
assert peak_memory_gib(cpu) > high - 0.1
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets it")
def test_the_peak_is_that_of_what_follows_a_reset() -> None:
    """In a process of its own: others here make malloc keep what they free.

    It is the shell's child: Linux counts what a process was before it became another program.
    """
    command = ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, RESET]
    subprocess.run(command, check=True)
