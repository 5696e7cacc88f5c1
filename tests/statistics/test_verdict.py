"""The rules of the verdict one by one; its labels from losses: test_summary.py."""

import pytest

from fvlm.statistics.arms import ARMS, BASELINES, CONTROLS
from fvlm.statistics.evaluation import ArmResult, HeldOut, Label, short_meaning
from fvlm.statistics.ratio import UNDEFINED, Estimate
from fvlm.statistics.verdict import (
    DEMANDS,
    count_videos,
    decide,
    describe,
    describe_power,
    describe_skill,
    headline,
    unbeaten,
)

BEATEN, EQUAL, LOST = (Estimate(n, n - 0.1, n + 0.1) for n in (1.2, 1.0, 0.8))
ALL_BEATEN = dict.fromkeys((*CONTROLS, *BASELINES), BEATEN)


def interval(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high)


def found(
    ratio: Estimate,
    against: dict[str, Estimate] = ALL_BEATEN,
    *,
    videos: int = 20,
    groups: int | None = None,
    guards: tuple[Estimate, Estimate] | None = None,
    seeds: int = 3,
    detectable: float | None = 1.04,
    wanted: int | None = 50,
    clips: int | None = None,
    gain: Estimate = UNDEFINED,
) -> HeldOut:
    """What makes the verdict and its sentence; relative to frames 1 and 2 the ratio is the same."""
    first, second = guards or (ratio, ratio)
    return HeldOut(
        videos=videos,
        groups=groups or videos,
        clips=clips or videos,
        seeds=seeds,
        coarse_trained=True,
        coarse_fine_ratio=UNDEFINED,
        coarse_fine_ratio_dynamic=ratio,
        coarse_fine_ratio_early=UNDEFINED,
        over_frame_1=first,
        over_frame_2=second,
        cls_masked=UNDEFINED,
        skill_over_ar1=gain,
        improvement_pct=None,
        detectable_ratio=detectable,
        groups_for_ratio_1_05=wanted,
        by_seed={},
        arms={arm: ArmResult(loss=1, fine_ratio_dynamic=against.get(arm)) for arm in ARMS},
    )


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (found(interval(1.15, 1.20)), "very_promising"),
        (found(interval(1.149, 1.20)), "proof_of_concept"),
        (found(interval(1.05, 1.20)), "proof_of_concept"),
        (found(interval(1.049, 1.20)), "validated"),
        (found(interval(1.001, 1.20)), "validated"),
        (found(interval(1.2, 1.3), seeds=1), "one_training"),
        (found(interval(1.00, 1.20)), "inconclusive"),
        (found(interval(1.00001, 1.00002)), "inconclusive"),  # rounding is no result
        (found(interval(0.95, 1.05)), "inconclusive"),
        (found(interval(0.999995, 0.999999)), "inconclusive"),
        (found(interval(0.90, 0.99)), "worse"),
        (found(interval(1.06, 1.20), videos=6), "proof_of_concept"),
        (found(interval(1.06, 1.20), videos=5), "inconclusive"),
        (found(interval(1.06, 1.20), videos=100, groups=5), "inconclusive"),
        (found(interval(0.80, 0.90), videos=5), "inconclusive"),
        (found(Estimate(1.5, None, None), videos=1), "inconclusive"),
        (found(UNDEFINED), "inconclusive"),
        *((found(BEATEN, guards=(g, BEATEN)), "inconclusive") for g in (EQUAL, LOST, UNDEFINED)),
        *((found(BEATEN, guards=(BEATEN, g)), "inconclusive") for g in (EQUAL, LOST, UNDEFINED)),
        *((found(LOST, guards=(g, LOST)), "inconclusive") for g in (EQUAL, BEATEN, UNDEFINED)),
        *((found(LOST, guards=(LOST, g)), "inconclusive") for g in (EQUAL, BEATEN, UNDEFINED)),
        *((found(BEATEN, ALL_BEATEN | {arm: EQUAL}), "inconclusive") for arm in ALL_BEATEN),
        *((found(BEATEN, ALL_BEATEN | {arm: UNDEFINED}), "inconclusive") for arm in ALL_BEATEN),
        (found(LOST, dict.fromkeys(ALL_BEATEN, EQUAL)), "worse"),
    ],
)
def test_the_verdict(measured: HeldOut, expected: Label) -> None:
    assert decide(measured) == expected
    statement, ratio = describe(measured), measured.coarse_fine_ratio_dynamic
    assert statement.startswith(expected.replace("_", " ").capitalize())
    assert statement.endswith(".")
    assert len(headline(measured)) <= 70  # a column of `dvc metrics diff`
    if ratio.value is not None:
        assert f"{ratio.value:.4f}" in statement
    if ratio.low is not None:
        assert f"95% interval {ratio.low:.4f} to {ratio.high:.4f}" in statement


def test_every_label_says_what_it_demands() -> None:
    assert list(DEMANDS) == [
        "worse",
        "inconclusive",
        "one_training",
        "validated",
        "proof_of_concept",
        "very_promising",
    ]


def test_a_control_is_beaten_when_its_whole_interval_is_above_one() -> None:
    against = {
        "static_in_fine": Estimate(1.01, 1.005, 1.02),
        "shuffled": Estimate(1.5, 0.99, 2.0),
        "random": Estimate(1.5, None, None),
    }
    assert unbeaten(against) == ["shuffled", "random"]


def test_the_statement_names_what_stands_against_the_claim() -> None:
    against = ALL_BEATEN | {"static_in_fine": EQUAL, "ar1": LOST, "mean": EQUAL}
    statement = describe(found(interval(1.06, 1.2), against))
    assert "not shown to beat the static query" in statement
    assert "AR(1) of the latents beats the fine pass (0.8000 of its loss)" in statement
    assert "mean latent is not shown to be worse than the fine pass" in statement
    assert short_meaning("persistence") not in statement
    fine = describe(found(interval(1.06, 1.2)))
    assert "beats every control" in fine
    assert "relative to frame" not in fine
    assert "latent" not in fine


def test_a_ratio_that_frame_2_explains_says_so() -> None:
    statement = describe(found(BEATEN, guards=(BEATEN, EQUAL)))
    assert "relative to frame 2, where looking cannot help, the ratio is 1.0000" in statement
    assert "relative to frame 1" not in statement
    assert "is undefined" in describe(found(BEATEN, guards=(UNDEFINED, BEATEN)))


def test_one_training_says_that_it_is_one() -> None:
    words = "what another seed would change is not in the interval"
    assert words in describe(found(interval(1.06, 1.2), seeds=1))
    assert words not in describe(found(interval(1.06, 1.2), seeds=2))


def test_power_in_words() -> None:
    words = describe_power(found(BEATEN))
    assert "20 videos tell a true ratio of 1.0400 from 1 in 80% of repeats" in words
    assert "to tell 1.05 it takes 50 videos." in words
    films = describe_power(found(BEATEN, videos=80, groups=20))
    assert "80 videos of 20 films tell" in films
    assert "it takes 50 films." in films
    assert "it takes more trainings" in describe_power(found(BEATEN, wanted=None))
    assert describe_power(found(BEATEN, detectable=None)) == ""


def test_the_headline_is_for_a_table() -> None:
    assert headline(found(interval(1.01, 1.03), videos=7)) == (
        "validated: 1.0200 (1.0100 to 1.0300), 7 videos"
    )
    assert headline(found(Estimate(1.5, None, None), videos=1)) == "inconclusive: 1.5000, 1 video"
    assert headline(found(UNDEFINED, videos=1)) == "inconclusive: undefined"


def test_skill_over_a_copy_says_what_a_null_means() -> None:
    copy = Estimate(-0.001, -0.004, 0.002)
    for gain in (copy, Estimate(0.001, 0.0, 0.002), Estimate(-0.3, -0.4, -0.2)):
        assert "speaks of copying, not of looking" in describe_skill(found(EQUAL, gain=gain))
    gained = describe_skill(found(EQUAL, gain=Estimate(0.0152, 0.009, 0.021)))
    assert "+1.52% (95% interval +0.90% to +2.10%)" in gained
    assert "copying, not of looking" not in gained
    assert describe_skill(found(EQUAL)) == ""


def test_clips_of_one_video_are_counted_apart() -> None:
    assert count_videos(found(EQUAL, videos=7, clips=33)) == "33 clips of 7 videos"
    of_two_films = count_videos(found(EQUAL, videos=7, clips=33, groups=2))
    assert of_two_films == "33 clips of 7 videos of 2 films"
    assert count_videos(found(EQUAL, videos=7)) == "7 videos"
