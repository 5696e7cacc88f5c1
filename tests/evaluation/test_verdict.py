import pytest

from fvlm.evaluation.arms import CONTROLS
from fvlm.evaluation.ratio import Estimate
from fvlm.evaluation.verdict import Verdict, decide, describe, unbeaten

BEATEN, EQUAL = Estimate(1.2, 1.1, 1.3), Estimate(1.0, 0.9, 1.1)
ALL_BEATEN = dict.fromkeys(CONTROLS, BEATEN)


def interval(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high)


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
            ALL_BEATEN | {"random": Estimate(None, None, None)},
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
        (Estimate(None, None, None), ALL_BEATEN, 20, "inconclusive"),
    ],
)
def test_the_verdict(
    ratio: Estimate, against: dict[str, Estimate], videos: int, expected: Verdict
) -> None:
    assert decide(ratio, against, videos=videos) == expected
    statement = describe(ratio, against, videos=videos, persistence=2.0)
    assert statement.startswith(expected.capitalize())
    assert statement.endswith(".")
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


def test_the_statement_names_what_stands_against_the_claim() -> None:
    against = ALL_BEATEN | {"static_in_fine": EQUAL}
    statement = describe(interval(1.06, 1.2), against, videos=20, persistence=0.9)
    assert "not shown to beat the static query" in statement
    assert "does not even beat copying" in statement
    fine = describe(interval(1.06, 1.2), ALL_BEATEN, videos=20, persistence=2.0)
    assert "beats every control" in fine
    assert "copying" not in fine
