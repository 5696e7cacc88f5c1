import torch

from fvlm.compute import autocast, default_device, peak_memory_gib

CPU = torch.device("cpu")


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
