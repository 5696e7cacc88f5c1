import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fvlm.core.device import autocast, default_device, peak_memory_gib

CPU = torch.device("cpu")
PAGE_FAULTS = """
import resource, torch
from fvlm.core.prefetch import one_core_each

def work(_):
    for size in (2**21, 2**22, 2**20) * 5:
        torch.cat([torch.ones(size), torch.ones(size)]) + 1

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    list(ahead.map(work, range(8)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with one_core_each() as ahead:
    print(page_faults(), page_faults(), page_faults())
"""


def test_bfloat16_computes_products_and_keeps_float32_weights() -> None:
    layer = torch.nn.Linear(8, 8)
    with autocast(CPU, "bfloat16"):
        assert layer(torch.randn(2, 8)).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32


def test_float32_is_untouched() -> None:
    with autocast(CPU, "float32"):
        assert torch.nn.Linear(8, 8)(torch.randn(2, 8)).dtype == torch.float32


def test_device_and_memory() -> None:
    assert torch.zeros(1, device=default_device()).sum() == 0
    assert 0.01 < peak_memory_gib(CPU) < 64


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
    )
    first, _, third = map(int, done.stdout.split())
    assert third < first / 4
