"""What a model weighs and what a clip costs, against counts made by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvlm.clips.batch import Batch
from fvlm.report.cost import clip_flops, count_parameters
from tests import tiny

T, N, D = 5, 10, 16


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.randn(1, T, N, D).half(), torch.randn(1, T, 4, 4, 4).half(), keys=["clip"])


def test_every_parameter_counts_for_one_part() -> None:
    model = tiny.foveated()
    found = count_parameters(model)
    assert found["all"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["all"] == sum(count for part, count in found.items() if part != "all")
    assert found["language model"] == sum(p.numel() for p in model.language.parameters())
    assert found["prediction head"] == sum(p.numel() for p in model.head.parameters())


def test_operations_are_those_of_layers_that_run_and_of_attention(batch: Batch) -> None:
    model, by_hand = tiny.foveated(iterations=2), 0

    def count(layer: Any, _: object, output: Tensor) -> None:
        nonlocal by_hand
        # Each output value is a sum of as many products as its channel has weights.
        by_hand += 2 * output.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        model(batch.inputs.float(), batch.latents.float())
    for layer in model.modules():
        layer._forward_hooks.clear()
    found = clip_flops(model, batch)
    assert by_hand < found < 1.2 * by_hand  # attention multiplies without a layer
    assert next(model.parameters()).device.type == "cpu"


def test_each_fine_pass_costs_the_same(batch: Batch) -> None:
    one, two, three = (clip_flops(tiny.foveated(iterations=n), batch) for n in (1, 2, 3))
    assert 0 < two - one == three - two
