"""Changed frames are the changes they claim, and the paired comparison says what happened."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fvlm.core.errors import ParamsError
from fvlm.uncertainty.validity import blur, compare, downsample


def test_blur_spreads_a_point_like_a_gaussian() -> None:
    frames = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    frames[:, 1, 16, 16] = 255
    row = blur(frames, 1.5)[0, 1, 16].float()
    expected = (
        255 / (2 * torch.pi * 1.5**2) * torch.exp(-0.5 * ((torch.arange(33) - 16) / 1.5) ** 2)
    )
    assert (row - expected).abs().max() <= 1
    assert blur(frames, 1.5)[0, [0, 2]].sum() == 0


@pytest.mark.parametrize("change", [lambda f: blur(f, 2.0), lambda f: downsample(f, 4)])
def test_a_plain_frame_stays_and_detail_goes(change: object, frames: Tensor) -> None:
    assert callable(change)
    plain = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(change(plain), plain)
    found = change(frames)
    assert found.dtype == torch.uint8
    assert found.shape == frames.shape
    assert found.float().std() < 0.5 * frames.float().std()


def test_a_factor_beyond_the_frame(frames: Tensor) -> None:
    with pytest.raises(ParamsError, match=r"must be at most decode\.frame_size \(32\), got 33"):
        downsample(frames, 33)


def test_scores_that_rise() -> None:
    rng = np.random.default_rng(0)
    clean = rng.uniform(1, 2, 30)
    clips = [f"clip {number // 3}" for number in range(30)]
    risen = compare(clean, clean * rng.uniform(1.05, 1.5, 30), clips)
    assert risen.rising == 1
    assert 1.1 < risen.ratio_median < 1.45
    assert risen.wilcoxon_p == pytest.approx(2**-10)  # all of ten clips: the smallest possible
    fallen = compare(clean, clean * 0.9, clips)
    assert fallen.rising == 0
    assert fallen.ratio_median == pytest.approx(0.9)
    assert fallen.wilcoxon_p > 0.99


def test_without_a_difference_p_is_uniform() -> None:
    rng = np.random.default_rng(1)
    clips = [f"clip {number}" for number in range(25)]
    found = [
        compare(rng.lognormal(size=25), rng.lognormal(size=25), clips).wilcoxon_p
        for _ in range(300)
    ]
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.1
    assert compare(np.ones(4), np.ones(4), clips[:4]).wilcoxon_p == 1


def test_a_pair_with_a_score_of_zero_has_no_ratio() -> None:
    clean, clips = np.linspace(1, 2, 10), [f"clip {number // 2}" for number in range(10)]
    changed = 1.5 * clean
    for scores in (clean, changed):
        one, kept = scores.copy(), np.arange(10) != 4
        one[4] = 0
        pair = (one, changed) if scores is clean else (clean, one)
        found = compare(*pair, clips)
        rest = compare(
            clean[kept], changed[kept], [clips[number] for number in np.flatnonzero(kept)]
        )
        assert (found.ratio_median, found.wilcoxon_p) == (rest.ratio_median, rest.wilcoxon_p)
        assert found.rising == (1 if scores is clean else 0.9)
    nothing = compare(np.zeros(3), np.ones(3), clips[:3])
    assert nothing.rising == 1
    assert np.isnan([nothing.ratio_median, nothing.wilcoxon_p]).all()


def test_many_frames_of_one_clip_prove_nothing() -> None:
    clean = np.linspace(1, 2, 50)
    assert compare(clean, clean * 1.2, ["a"] * 25 + ["b"] * 25).wilcoxon_p == 0.25
