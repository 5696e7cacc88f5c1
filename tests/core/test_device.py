import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fvlm.core.device import (
    Dtype,
    arithmetic,
    auto_dtype,
    autocast,
    default_device,
    peak_memory_gib,
)
from fvlm.core.errors import ParamsError
from fvlm.core.params import Params, load_params, overlay_params

ROOT = Path(__file__).parents[2]
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


def test_the_environment_chooses_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("FVLM_DEVICE", raising=False)
    assert default_device().type == "cuda"
    for name in ("cpu", "cuda"):
        monkeypatch.setenv("FVLM_DEVICE", name)
        assert default_device().type == name
    for name in ("mps", "gpu"):
        monkeypatch.setenv("FVLM_DEVICE", name)
        with pytest.raises(ParamsError, match=rf"FVLM_DEVICE is '{name}', must be .*: cuda, cpu"):
            default_device()


@pytest.mark.parametrize("path", sorted((ROOT / "fvlm").rglob("*.py")), ids=str)
def test_float64_is_made_on_the_cpu(path: Path) -> None:
    """Apple's GPUs have none."""
    for line in path.read_text().splitlines():
        assert ".double()" not in line or ".cpu().double()" in line
        assert "torch.float64" not in line


class Section(Params):
    dtype: Dtype


class Sections(Params):
    train: Section


@pytest.mark.parametrize("fast", [False, True])
def test_a_preset_may_say_auto_and_parameters_hold_what_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    meant = "bfloat16" if fast else "float32"
    assert auto_dtype() == meant
    params, preset = tmp_path / "params.yaml", tmp_path / "preset.yaml"
    params.write_text("train:\n  dtype: float32  # compute type\n")
    preset.write_text("train:\n  dtype: auto\n")
    with pytest.raises(ParamsError, match=f"train.dtype: auto stands in presets .* write {meant}"):
        load_params(Sections, preset)
    overlay_params(Sections, preset, params, auto_dtype=auto_dtype)
    assert load_params(Sections, params).train.dtype == meant
    assert "# compute type" in params.read_text()


def test_float32_is_float32_on_every_device_and_said() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    default_device()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.benchmark
    assert arithmetic(CPU, "float32").startswith("float32 products on cpu, no TF32")


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
