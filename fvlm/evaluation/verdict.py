"""The verdict in words, from the interval of the ratio and the controls; pure logic.

All of it rests on frames t >= 3: before them no predicted query can have helped.
"""

from typing import Literal

from fvlm.evaluation.arms import MEANINGS
from fvlm.evaluation.ratio import Estimate

Verdict = Literal["validated", "promising", "inconclusive", "worse"]

VALIDATED_ABOVE = 1.05
# Two passes that compute the same thing differ by rounding: that is no result.
ROUNDING = 1e-4
# With fewer videos all of one sign, even a sign test cannot reject at 5% (2 * 0.5**5 = 0.06).
MIN_VIDEOS = 6


def decide(ratio: Estimate, against: dict[str, Estimate], *, videos: int) -> Verdict:
    """Verdict on `ratio` = coarse / fine loss, with `against` = control / fine loss by control.

    validated     lower end > 1.05, and the fine pass beats every control
    promising     lower end > 1, and the fine pass beats every control
    worse         upper end < 1
    inconclusive  the interval holds 1, a control does as well as the fine pass (then it is not the
                  queries that help), or there are too few videos for an interval to mean much
    """
    if videos < MIN_VIDEOS or ratio.low is None or ratio.high is None:
        return "inconclusive"
    if ratio.low > 1 + ROUNDING and not unbeaten(against):
        return "validated" if ratio.low > VALIDATED_ABOVE else "promising"
    if ratio.high < 1 - ROUNDING:
        return "worse"
    return "inconclusive"


def unbeaten(against: dict[str, Estimate]) -> list[str]:
    """Controls that the fine pass does not beat: the interval of control / fine is not above 1."""
    return [
        name
        for name, estimate in against.items()
        if estimate.low is None or estimate.low <= 1 + ROUNDING
    ]


def describe(
    ratio: Estimate, against: dict[str, Estimate], *, videos: int, persistence: float | None
) -> str:
    """The result in one English sentence; `persistence` is persistence / fine loss."""
    verdict = decide(ratio, against, videos=videos)
    if ratio.value is None:
        return "Inconclusive: the coarse/fine ratio is undefined on these clips."
    parts = [
        f"{verdict.capitalize()}: over frames 3 and later of {_count(videos)} the coarse loss is "
        f"{ratio.value:.4f} times the fine loss ({_interval(ratio)})",
        _reason(verdict, ratio, videos),
        _controls(against),
    ]
    if persistence is not None and persistence <= 1:
        parts.append("the fine pass does not even beat copying the previous latent")
    return "; ".join(part for part in parts if part) + "."


def _count(videos: int) -> str:
    return "1 video" if videos == 1 else f"{videos} videos"


def _interval(ratio: Estimate) -> str:
    if ratio.low is None or ratio.high is None:
        return "no interval: that takes at least 2 videos"
    return f"95% interval {ratio.low:.4f} to {ratio.high:.4f}"


def _reason(verdict: Verdict, ratio: Estimate, videos: int) -> str:
    if videos < MIN_VIDEOS:
        return f"a verdict takes at least {MIN_VIDEOS} videos"
    match verdict:
        case "validated":
            return f"the whole interval is above {VALIDATED_ABOVE}"
        case "promising":
            return f"the interval is above 1 but not above {VALIDATED_ABOVE}"
        case "worse":
            return "the whole interval is below 1"
        case "inconclusive" if ratio.low is not None and ratio.low > 1 + ROUNDING:
            return "the interval is above 1, but it is not the queries that help"
        case "inconclusive":
            return "the interval holds 1"


def _controls(against: dict[str, Estimate]) -> str:
    remaining = unbeaten(against)
    if not remaining:
        return "the fine pass beats every control"
    named = ", ".join(MEANINGS[name].removeprefix("fine pass with ") for name in remaining)
    return f"the fine pass is not shown to beat {named}"
