"""Masks: right rate, right scale, independent of each other, and dependent on their names only."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from fvlm.uncertainty import masks
from fvlm.uncertainty.masks import Row, drop, kept_levels, row_keys

CPU = torch.device("cpu")


def kept(
    rows: list[Row],
    *,
    site: str = "a",
    p: float = 0.3,
    seed: int = 0,
    shape: tuple[int, int] = (64, 32),
) -> Tensor:
    """Boolean masks [R, N, D]."""
    ones = torch.ones(len(rows), *shape)
    return drop(ones, row_keys(seed, rows, CPU), site, kept_levels(p)) != 0


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_rate_and_scale(p: float) -> None:
    rows = [Row(0, number, "x") for number in range(64)]
    values = drop(torch.ones(64, 64, 64), row_keys(0, rows, CPU), "a", kept_levels(p))
    count = values.numel()
    dropped = (values == 0).sum().item()
    assert abs(dropped - p * count) < 5 * (count * p * (1 - p)) ** 0.5
    scale = masks.LEVELS / kept_levels(p)
    assert set(values.unique().tolist()) == {0.0, torch.tensor(scale).item()}
    assert scale == pytest.approx(1 / (1 - p), rel=2e-4)


def test_every_row_and_place_drops_at_the_same_rate() -> None:
    mask = kept([Row(0, number, "x") for number in range(2000)], shape=(4, 8))
    rates = mask.float().mean(dim=0)
    assert (rates - 0.7).abs().max() < 5 * (0.21 / 2000) ** 0.5
    rates = mask.float().mean(dim=(1, 2))
    assert rates.var().item() == pytest.approx(0.21 / 32, rel=0.15)


@pytest.mark.parametrize("shape", [(64, 32), (1, 2048)])
def test_masks_of_other_names_are_independent(shape: tuple[int, int]) -> None:
    """Each of trial, pass, sample, site and seed gives an unrelated mask."""
    found = [
        kept([Row(trial, number, sample)], site=site, seed=seed, shape=shape).flatten()
        for trial, number, sample, site, seed in itertools.product(
            (0, 1), (0, 1, 2), ("x", "y"), ("a", "b"), (0, 1)
        )
    ]
    table = torch.stack(found).double().numpy()
    off = np.corrcoef(table)[np.triu_indices(len(table), k=1)]
    assert np.abs(off).max() < 5.5 / 2048**0.5
    assert off.std() == pytest.approx(1 / 2048**0.5, rel=0.15)


def test_values_that_share_a_word_are_independent() -> None:
    """One 32-bit word decides two values by its halves, neighbours come from consecutive words."""
    mask = kept([Row(0, number, "x") for number in range(500)], p=0.5, shape=(2, 64)).double()
    mask = mask.flatten(1) - 0.5
    for distance in (1, 2, 31, 32, 33, 64):
        correlation = (mask[:, distance:] * mask[:, :-distance]).mean().item() / 0.25
        assert abs(correlation) < 5 / (500 * (128 - distance)) ** 0.5, distance


def test_masks_do_not_depend_on_the_batch() -> None:
    rows = [Row(trial, number, sample) for trial in (0, 1) for number in (0, 7) for sample in "xy"]
    together = kept(rows)
    for order in (rows[::-1], rows[3:5], rows[:1]):
        for row, mask in zip(order, kept(order), strict=True):
            assert torch.equal(mask, together[rows.index(row)])


def test_masks_do_not_depend_on_the_size_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(0, number, "x") for number in range(5)]
    expected = kept(rows)
    monkeypatch.setattr(masks, "CHUNK", 2 * 64 * 32)
    assert torch.equal(kept(rows), expected)


def test_the_first_token_drops_alike_when_it_is_computed_alone() -> None:
    rows = [Row(0, number, "x") for number in range(5)]
    assert torch.equal(kept(rows, shape=(1, 32)), kept(rows, shape=(9, 32))[:, :1])


def test_masks_stay_the_same_in_future_versions() -> None:
    """Kept scores of a killed run are continued: the stream must not change unnoticed."""
    mask = kept([Row(0, 0, "x")], p=0.5, shape=(1, 32))[0, 0].int().tolist()
    assert "".join(map(str, mask)) == "01001010000110011000111100000100"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_drops_the_same_values() -> None:
    rows = [Row(0, number, "x") for number in range(5)]
    keys = row_keys(0, rows, torch.device("cuda"))
    values = drop(torch.ones(5, 64, 32, device="cuda"), keys, "a", kept_levels(0.3))
    assert torch.equal(values.cpu() != 0, kept(rows))


@pytest.mark.parametrize("p", [0, 1, 1e-6, 1 - 1e-6])
def test_probabilities_that_drop_nothing_or_all(p: float) -> None:
    with pytest.raises(ValueError, match=r"must be between 2\^-16 and 1 - 2\^-16"):
        kept_levels(p)


def test_what_cannot_be_dropped() -> None:
    keys = row_keys(0, [Row(0, 0, "x")], CPU)
    with pytest.raises(TypeError, match="expected float32, got torch"):
        drop(torch.ones(1, 1, 2, dtype=torch.bfloat16), keys, "a", 100)
    with pytest.raises(ValueError, match="a: expected an even number of features, got 3"):
        drop(torch.ones(1, 1, 3), keys, "a", 100)
