"""Figures from losses that are made up: early frames say the opposite of the later ones."""

from typing import Any

import numpy as np
import pytest

from fvlm.core.document import flatten
from fvlm.statistics.arms import ARMS, BASELINES, CONTROLS, ClipName, Losses
from fvlm.statistics.evaluation import HeldOut, short_meaning
from fvlm.statistics.ratio import ALL, DYNAMIC, UNDEFINED, Bootstrap, mean_loss
from fvlm.statistics.summary import About, clip_rows, on_training_clips, summarize
from fvlm.statistics.verdict import decide, describe, describe_gap

CLIPS, T = 40, 6
# Each arm's loss at frames t >= 3, relative to that of the coarse pass.
LATER = {"coarse": 1.0, "fine": 0.8, "autoregressive": 0.9, "static_in_fine": 1.1, "shuffled": 1.3}
LATER |= {"random": 1.7, "persistence": 2.0, "ar1": 1.5, "mean": 2.5}
LATER |= {"coarse_cls_masked": 1.05, "fine_cls_masked": 0.85}


def losses(*, early_fine: float = 1.25, gain: float | None = None, **later: float) -> Losses:
    """Frames 1 and 2: the controls are better than the fine pass, which loses to coarse.

    With `gain` both passes are alike there, coarse / fine loss is `gain` later, up to noise, and
    every other arm is so much worse.
    """
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 2, (CLIPS, T))
    if gain is not None:
        made = {arm: base * (2.0 if arm not in later else later[arm] * gain) for arm in LATER}
        made["fine"] = base * rng.normal(1, 0.01, (CLIPS, T))
        made["coarse"] = base * rng.normal(1, 0.01, (CLIPS, T))
        made["coarse"][:, 2:] *= gain
        return made
    made = {}
    for arm, factor in (LATER | later).items():
        made[arm] = base * factor
        made[arm][:, :2] = base[:, :2] * (early_fine if arm == "fine" else 0.5)
    made["coarse"][:, :2] = base[:, :2]
    return made


CLIP_NAMES = [ClipName(f"clip-{number}", f"video {number}") for number in range(CLIPS)]


def held_out(made: Losses, *, seeds: int = 3, **about: Any) -> HeldOut:
    """The same losses from each of several trainings."""
    trained = dict.fromkeys(range(seeds), made)
    return summarize(trained, CLIP_NAMES, samples=200, seed=0, about=About(**about)).held_out


def figures(made: Losses, **about: Any) -> dict[str, Any]:
    found = held_out(made, **about)
    return {"verdict": decide(found)} | flatten(found)


@pytest.mark.parametrize(
    ("label", "gain", "seeds"),
    [
        ("worse", 0.97, 3),
        ("worse", 0.97, 1),
        ("inconclusive", 1.0, 3),
        ("one_training", 1.03, 1),
        ("one_training", 1.3, 1),
        ("validated", 1.03, 3),
        ("proof_of_concept", 1.08, 3),
        ("very_promising", 1.2, 3),
    ],
)
def test_each_label_from_its_own_losses(label: str, gain: float, seeds: int) -> None:
    """The coarse loss is `gain` times the fine loss from frame 3 on, with some noise."""
    found = held_out(losses(gain=gain), seeds=seeds)
    assert decide(found) == label
    statement = describe(found)
    assert statement.startswith(label.replace("_", " ").capitalize())
    assert ("one training" in statement.lower()) == (seeds == 1)


def test_a_coarse_pass_that_is_worse_from_frame_2_on_is_handicapped() -> None:
    """Pooled, frames 1 and 2 hide it: frame 1 has the largest loss, and no pass reads there."""
    made = losses(gain=1.13)
    made["coarse"][:, 1] *= 1.13
    for values in made.values():
        values[:, 0] *= 10
    found = held_out(made)
    assert found.coarse_fine_ratio_early.value == pytest.approx(1.014, abs=0.005)
    assert decide(found) == "inconclusive"
    assert "relative to frame 2, where looking cannot help, the ratio is 0.99" in describe(found)


def test_the_gap_that_one_token_closes() -> None:
    """(coarse - fine) / (coarse - pooled) where the pooled tokens are shown to be better."""
    made = losses(gain=1.25)  # coarse / fine
    fine, noise = made["fine"], np.linspace(0.99, 1.01, len(made["fine"]))[:, None]
    made["pooled_4"] = fine * noise * (1.25 - 0.5)  # twice as far from the coarse pass
    made["pooled_1"] = made["coarse"] * noise
    found = held_out(made)
    gap = found.gap_closed["pooled_4"]
    assert gap.value == pytest.approx(0.5, abs=0.02)
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low < 0.5 < gap.high
    assert found.gap_closed["pooled_1"] == UNDEFINED
    said = describe_gap(found)
    assert "1 pooled token a frame, no query: not shown to be better" in said
    assert "4 pooled tokens a frame, no query: the fine pass, with one, closes 5" in said
    assert describe_gap(held_out(losses(gain=1.25))) == ""
    assert not {"pooled_4", "pooled_1"} & found.controls.keys()


def test_a_gain_stands_out_above_an_early_one() -> None:
    """A true 1.20 is not refused because frames 1 and 2 differ by 3%, one of 1.02 is."""
    for gain, label in ((1.2, "proof_of_concept"), (1.02, "inconclusive")):
        made = losses(gain=gain)
        made["coarse"][:, :2] *= 1.031
        found = decide(held_out(made))
        assert found in ((label,) if gain < 1.1 else ("proof_of_concept", "very_promising"))


def test_worse_has_the_mirror_of_the_guard() -> None:
    made = losses(gain=0.9)
    made["coarse"][:, :2] *= 0.9
    found = held_out(made)
    assert decide(found) == "inconclusive"
    assert "relative to frame 1" in describe(found)


@pytest.mark.parametrize("gain", [0.8, 1.3])
def test_an_untrained_coarse_pass_never_gives_a_verdict(gain: float) -> None:
    found = held_out(losses(gain=gain), coarse_trained=False)
    assert decide(found) == "inconclusive"
    assert "train.lambda_coarse: 0" in describe(found)


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_that_beats_the_fine_pass_stands_in_the_way(baseline: str) -> None:
    found = held_out(losses(gain=1.3, **{baseline: 0.6}))
    assert decide(found) == "inconclusive"
    assert f"{short_meaning(baseline)} beats the fine pass (0.7" in describe(found)


def test_trainings_that_differ_are_no_evidence_of_many() -> None:
    """Null: each training's ratio is off by a few percent, the mean over trainings is not."""
    ratios = {0: 1.04, 1: 0.97, 2: 1.0}
    trained = {seed: losses(gain=gain) for seed, gain in ratios.items()}
    found = summarize(trained, CLIP_NAMES, samples=200, seed=0).held_out
    assert decide(found) == "inconclusive"
    assert decide(held_out(losses(gain=1.04), seeds=1)) == "one_training"


def test_clips_of_one_film_are_one_group() -> None:
    clips = [ClipName(f"clip-{n}", f"video {n}", f"film {n % 8}") for n in range(CLIPS)]
    alone = held_out(losses(gain=1.2), seeds=1)
    found = summarize({0: losses(gain=1.2)}, clips, samples=200, seed=0).held_out
    assert (found.videos, found.groups, alone.groups) == (CLIPS, 8, CLIPS)
    assert f"{CLIPS} videos of 8 films" in describe(found)
    assert "films" not in describe(alone)
    few = [ClipName(clip.key, clip.video_id, f"film {n % 5}") for n, clip in enumerate(clips)]
    found = summarize({0: losses(gain=1.2)}, few, samples=200, seed=0).held_out
    assert decide(found) == "inconclusive"
    assert "a verdict takes at least 6 films" in describe(found)


def test_captions_worse_than_a_uniform_guess_are_named() -> None:
    said = {"caption_coarse": 3.0, "caption_fine": 2.0}
    made = losses(gain=1.2) | {name: np.full((CLIPS, 1), loss) for name, loss in said.items()}
    words = "captions of the coarse pass are predicted worse than by a uniform guess"
    found = held_out(made, vocabulary=10)
    assert found.captions is not None
    assert found.captions.uniform == pytest.approx(np.log(10))
    assert words in describe(found)
    assert "uniform guess" not in describe(held_out(made, vocabulary=100))


def test_training_clips_have_the_same_controls() -> None:
    found = on_training_clips({0: losses()}, CLIP_NAMES, samples=200, seed=0)
    assert list(found.against) == ["coarse", *CONTROLS]
    for arm in CONTROLS:
        assert found.against[arm].value == pytest.approx(LATER[arm] / 0.8)
        assert found.against[arm].low is not None


def test_verdict_and_controls_rest_on_frames_three_and_later() -> None:
    found = figures(losses())
    assert found["verdict"] == "very_promising"
    assert found["coarse_fine_ratio_dynamic"] == pytest.approx(1 / 0.8)
    assert found["coarse_fine_ratio_early"] == pytest.approx(1 / 1.25)
    for arm in (*CONTROLS, "autoregressive", "persistence"):
        assert found[f"{arm}_fine_ratio_dynamic"] == pytest.approx(LATER[arm] / 0.8)
        assert found[f"ratio_{arm}_dynamic"] == pytest.approx(1 / LATER[arm])
    assert found["ratio_random"] > found["ratio_random_dynamic"]


def test_skill_is_what_the_fine_loss_lacks_of_that_of_ar1() -> None:
    found = held_out(losses())
    skill, ratio = found.skill_over_ar1, found.against("ar1")
    assert skill.value == pytest.approx(1 - 0.8 / 1.5)
    assert skill.low == pytest.approx(1 - 1 / (ratio.low or 0))
    assert skill.high == pytest.approx(1 - 1 / (ratio.high or 0))
    noisy = losses(gain=1.0, ar1=1.02)
    found = held_out(noisy)
    assert (found.skill_over_ar1.low or 0) < (found.skill_over_ar1.value or 0)
    assert (found.skill_over_ar1.value or 0) < (found.skill_over_ar1.high or 0)
    assert {"skill_over_ar1", "skill_over_ar1_low", "skill_over_ar1_high"} <= set(flatten(found))


def test_every_ratio_has_an_interval() -> None:
    found = figures(losses())
    ratios = {name for name in found if f"{name}_low" in found}
    assert len(ratios) == 7 + 3 * (len(ARMS) - 2) + 3  # with the skill
    bare = {"detectable_ratio", "groups_for_ratio_1_05"}
    assert {
        name for name in found if "ratio" in name and not name.startswith(tuple(ratios))
    } == bare
    for name in ratios:
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"], name


def test_a_control_that_does_as_well_at_later_frames_is_enough() -> None:
    assert figures(losses(gain=1.3))["verdict"] == "very_promising"
    for arm in CONTROLS:
        made = losses(gain=1.3)
        made[arm] = made["fine"].copy()
        assert figures(made)["verdict"] == "inconclusive"


def same(found: float | None, expected: float | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return found == pytest.approx(expected, rel=1e-12)


def test_the_row_of_a_clip_says_what_its_losses_of_all_trainings_say() -> None:
    trained = {seed: losses(gain=1.1 + seed) for seed in range(3)}
    trained[1]["persistence"][:, 0] = np.nan
    trained[2]["shuffled"][:] = trained[1]["shuffled"][:] = trained[0]["shuffled"][:] = np.nan
    trained[0]["fine"][7] = trained[1]["fine"][7] = trained[2]["fine"][7] = 0.0
    rows = list(clip_rows(trained, CLIP_NAMES))
    assert [row.key for row in rows] == [clip.key for clip in CLIP_NAMES]
    for number, row in enumerate(rows):
        own = {arm: np.stack([made[arm][number] for made in trained.values()]) for arm in LATER}
        alone = Bootstrap(["one video"] * 3, samples=0, seed=0)
        for arm, values in own.items():
            assert same(row.losses[arm], mean_loss(values)), (number, arm)
        for frames, found in (
            (ALL, row.coarse_fine_ratio),
            (DYNAMIC, row.coarse_fine_ratio_dynamic),
        ):
            expected = alone.ratio(own["coarse"], own["fine"], frames).value
            assert same(found, expected)
    assert rows[7].coarse_fine_ratio is None
    assert rows[0].losses["shuffled"] is None
