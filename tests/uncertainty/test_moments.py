"""The score against numpy, against a hard case for sums of squares, and against a linear oracle."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fvlm.uncertainty.masks import LEVELS, Row, drop, kept_levels, row_keys
from fvlm.uncertainty.moments import Moments


def test_unbiased_variance_whatever_the_parts() -> None:
    values = torch.randn(3, 16, 5)
    for parts in ([16], [1, 15], [4, 4, 8], [1] * 16):
        moments = Moments(values[:, 0])
        for part in values.split(parts, dim=1):
            moments.add(part)
        pre, post = moments.scores().numpy()
        expected = values.double().numpy()
        np.testing.assert_allclose(pre, expected.var(axis=1, ddof=1).mean(axis=1))
        expected = F.normalize(values.double(), dim=-1).numpy()
        np.testing.assert_allclose(post, expected.var(axis=1, ddof=1).mean(axis=1), rtol=1e-6)


def test_a_mean_of_ten_million_deviations() -> None:
    """Sums that are not shifted by the reference are some percent off here, even in float64."""
    values = 1e7 + torch.randn(2, 64, 4, dtype=torch.float64)
    moments = Moments(torch.full((2, 4), 1e7))
    moments.add(values)
    expected = (values - 1e7).var(dim=1).mean(dim=1)
    np.testing.assert_allclose(moments.scores()[0].numpy(), expected.numpy(), rtol=1e-7)


def test_a_single_pass_has_no_variance() -> None:
    moments = Moments(torch.ones(1, 2))
    moments.add(torch.ones(1, 1, 2))
    with pytest.raises(ValueError, match="at least 2 passes, got 1"):
        moments.scores()


def test_linear_oracle() -> None:
    """Dropout on the input of W: trace of the covariance = p/(1-p) sum_j y_j^2 |W_:j|^2."""
    p, passes = 0.3, 20000
    linear, y = nn.Linear(32, 8), torch.randn(32)
    rows = [Row(0, number, "x") for number in range(passes)]
    dropped = y.expand(passes, 1, -1).clone()
    drop(dropped, row_keys(0, rows, torch.device("cpu")), "a", kept_levels(p))
    moments = Moments(linear(y)[None].detach())
    moments.add(linear(dropped[:, 0]).detach()[None])
    rounded = 1 - kept_levels(p) / LEVELS
    weights = linear.weight.detach().square().sum(dim=0)
    trace = rounded / (1 - rounded) * float((y.square() * weights).sum())
    assert moments.scores()[0].item() * 8 == pytest.approx(trace, rel=0.03)
