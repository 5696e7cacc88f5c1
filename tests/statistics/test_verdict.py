import pytest

from fvlm.statistics.arms import ARMS, CONTROLS
from fvlm.statistics.evaluation import ArmResult, HeldOut, Label
from fvlm.statistics.ratio import UNDEFINED, Estimate
from fvlm.statistics.verdict import decide, describe, headline, unbeaten

BEATEN, EQUAL = Estimate(1.2, 1.1, 1.3), Estimate(1.0, 0.9, 1.1)
ALL_BEATEN = dict.fromkeys(CONTROLS, BEATEN)


def interval(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high)


def found(
    ratio: Estimate,
    against: dict[str, Estimate],
    *,
    videos: int = 20,
    early: Estimate = EQUAL,
    persistence: float = 2.0,
    seeds: int = 1,
) -> HeldOut:
    """What makes the verdict and its sentence."""
    ratios = against | {"persistence": Estimate(persistence, None, None)}
    return HeldOut(
        videos=videos,
        clips=videos,
        seeds=seeds,
        coarse_fine_ratio=UNDEFINED,
        coarse_fine_ratio_dynamic=ratio,
        coarse_fine_ratio_early=early,
        improvement_pct=None,
        by_seed={},
        arms={arm: ArmResult(loss=1, fine_ratio_dynamic=ratios.get(arm)) for arm in ARMS},
    )


@pytest.mark.parametrize(
    ("ratio", "against", "videos", "expected"),
    [
        (interval(1.06, 1.20), ALL_BEATEN, 20, "validated"),
        (interval(1.05, 1.20), ALL_BEATEN, 20, "promising"),  # must exceed 1.05
        (interval(1.06, 1.20), ALL_BEATEN | {"static_in_fine": EQUAL}, 20, "inconclusive"),
        (interval(1.06, 1.20), ALL_BEATEN | {"shuffled": EQUAL}, 20, "inconclusive"),
        (interval(1.06, 1.20), ALL_BEATEN | {"random": EQUAL}, 20, "inconclusive"),
        (
            interval(1.06, 1.20),
            ALL_BEATEN | {"random": UNDEFINED},
            20,
            "inconclusive",
        ),
        (interval(1.001, 1.20), ALL_BEATEN, 20, "promising"),
        (interval(1.00, 1.20), ALL_BEATEN, 20, "inconclusive"),
        (interval(1.00001, 1.00002), ALL_BEATEN, 20, "inconclusive"),  # rounding is no result
        (interval(0.95, 1.05), ALL_BEATEN, 20, "inconclusive"),
        (interval(0.999995, 0.999999), ALL_BEATEN, 20, "inconclusive"),
        (interval(0.90, 0.99), ALL_BEATEN, 20, "worse"),
        (interval(1.06, 1.20), ALL_BEATEN, 6, "validated"),
        (interval(1.06, 1.20), ALL_BEATEN, 5, "inconclusive"),
        (interval(0.80, 0.90), ALL_BEATEN, 5, "inconclusive"),
        (Estimate(1.5, None, None), ALL_BEATEN, 1, "inconclusive"),
        (UNDEFINED, ALL_BEATEN, 20, "inconclusive"),
    ],
)
def test_the_verdict(
    ratio: Estimate, against: dict[str, Estimate], videos: int, expected: Label
) -> None:
    measured = found(ratio, against, videos=videos)
    assert decide(measured) == expected
    statement = describe(measured)
    assert statement.startswith(expected.capitalize())
    assert statement.endswith(".")
    assert len(headline(measured)) <= 60  # a column of `dvc metrics diff`
    if ratio.value is not None:
        assert f"{ratio.value:.4f}" in statement
        assert ("1 video " if videos == 1 else f"{videos} videos") in statement
    if ratio.low is not None:
        assert f"95% interval {ratio.low:.4f} to {ratio.high:.4f}" in statement


def test_a_control_is_beaten_when_its_whole_interval_is_above_one() -> None:
    against = {
        "static_in_fine": Estimate(1.01, 1.005, 1.02),
        "shuffled": Estimate(1.5, 0.99, 2.0),
        "random": Estimate(1.5, None, None),
    }
    assert unbeaten(against) == ["shuffled", "random"]


@pytest.mark.parametrize(
    ("early", "expected"),
    [(1.0, "validated"), (1.03, "validated"), (0.5, "validated"), (1.04, "inconclusive")],
)
def test_a_gain_where_looking_cannot_help_is_no_result(early: float, expected: Label) -> None:
    ratio, at_first = interval(1.1, 1.2), Estimate(early, early - 0.001, early + 0.001)
    measured = found(ratio, ALL_BEATEN, early=at_first)
    assert decide(measured) == expected
    message = f"at frames 1 and 2, where looking cannot help, it is {early:.4f} times"
    assert (message in describe(measured)) == (expected == "inconclusive")


def test_frames_that_say_nothing_are_no_excuse() -> None:
    measured = found(interval(1.1, 1.2), ALL_BEATEN, early=UNDEFINED)
    assert decide(measured) == "inconclusive"
    assert "it is undefined times" in describe(measured)


def test_the_statement_names_what_stands_against_the_claim() -> None:
    against = ALL_BEATEN | {"static_in_fine": EQUAL}
    statement = describe(found(interval(1.06, 1.2), against, persistence=0.9))
    assert "not shown to beat the static query" in statement
    assert "does not even beat copying" in statement
    fine = describe(found(interval(1.06, 1.2), ALL_BEATEN))
    assert "beats every control" in fine
    assert "copying" not in fine


def test_one_training_says_that_it_is_one() -> None:
    words = "what another seed would change is not in the interval"
    assert words in describe(found(interval(1.06, 1.2), ALL_BEATEN))
    assert words not in describe(found(interval(1.06, 1.2), ALL_BEATEN, seeds=2))


def test_the_headline_is_for_a_table() -> None:
    assert headline(found(interval(1.01, 1.03), ALL_BEATEN, videos=7)) == (
        "promising: 1.0200 (1.0100 to 1.0300), 7 videos"
    )
    assert headline(found(Estimate(1.5, None, None), ALL_BEATEN, videos=1)) == (
        "inconclusive: 1.5000, 1 video"
    )
    assert headline(found(UNDEFINED, ALL_BEATEN, videos=0)) == "inconclusive: undefined"
