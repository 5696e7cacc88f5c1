"""The verdict in words, from the interval of the ratio and the controls; pure logic.

It rests on frames t >= 3: before them no predicted query can have helped, and a gain there shows
that the coarse pass is handicapped.
"""

from collections.abc import Mapping

from fvlm.statistics.evaluation import HeldOut, Label, short_meaning
from fvlm.statistics.ratio import Estimate

VALIDATED_ABOVE = 1.05
# Two passes that compute the same thing differ by rounding: that is no result.
ROUNDING = 1e-4
EARLY_BELOW = 1.03
# With fewer videos all of one sign, even a sign test cannot reject at 5% (2 * 0.5**5 = 0.06).
MIN_VIDEOS = 6


def decide(found: HeldOut) -> Label:
    """Verdict on `found.coarse_fine_ratio_dynamic`.

    validated     lower end > 1.05, and the fine pass beats every control
    promising     lower end > 1, and the fine pass beats every control
    worse         upper end < 1
    inconclusive  the interval holds 1, a control does as well as the fine pass (then it is not the
                  queries that help), the ratio of frames 1 and 2 is above 1.03 as well, or there
                  are too few videos for an interval to mean much
    """
    ratio = found.coarse_fine_ratio_dynamic
    if found.videos < MIN_VIDEOS or ratio.low is None or ratio.high is None:
        return "inconclusive"
    if ratio.high < 1 - ROUNDING:
        return "worse"
    doubtful = unbeaten(found.controls) or is_handicapped(found.coarse_fine_ratio_early)
    if ratio.low <= 1 + ROUNDING or doubtful:
        return "inconclusive"
    return "validated" if ratio.low > VALIDATED_ABOVE else "promising"


def is_handicapped(early: Estimate) -> bool:
    """Whether the coarse pass loses where looking cannot help: at frames 1 and 2."""
    return early.value is None or early.value > EARLY_BELOW


def unbeaten(against: Mapping[str, Estimate]) -> list[str]:
    """Controls that the fine pass does not beat: the interval of control / fine is not above 1."""
    return [
        name
        for name, estimate in against.items()
        if estimate.low is None or estimate.low <= 1 + ROUNDING
    ]


def headline(found: HeldOut) -> str:
    """The result in a few words, for a table of metrics."""
    verdict, ratio = decide(found), found.coarse_fine_ratio_dynamic
    if ratio.value is None:
        return f"{verdict}: undefined"
    ends = "" if ratio.low is None else f" ({ratio.low:.4f} to {ratio.high:.4f})"
    return f"{verdict}: {ratio.value:.4f}{ends}, {_count(found.videos)}"


def describe(found: HeldOut) -> str:
    """The result in one English sentence."""
    verdict, ratio = decide(found), found.coarse_fine_ratio_dynamic
    early, copying = found.coarse_fine_ratio_early, found.against("persistence")
    if ratio.value is None:
        return "Inconclusive: the coarse/fine ratio is undefined on these clips."
    parts = [
        f"{verdict.capitalize()}: over frames 3 and later of {_count(found.videos)} the coarse "
        f"loss is {ratio.value:.4f} times the fine loss ({_interval(ratio)})",
        _reason(verdict, ratio, found.videos),
        _controls(found.controls),
    ]
    if is_handicapped(early):
        parts.append(
            f"at frames 1 and 2, where looking cannot help, it is {_figure(early.value)} times: "
            "the coarse pass is handicapped"
        )
    if copying.value is not None and copying.value <= 1:
        parts.append("the fine pass does not even beat copying the previous latent")
    if found.seeds == 1:
        parts.append("one training: what another seed would change is not in the interval")
    return "; ".join(part for part in parts if part) + "."


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _count(videos: int) -> str:
    return "1 video" if videos == 1 else f"{videos} videos"


def _interval(ratio: Estimate) -> str:
    if ratio.low is None or ratio.high is None:
        return "no interval: that takes at least 2 videos"
    return f"95% interval {ratio.low:.4f} to {ratio.high:.4f}"


def _reason(verdict: Label, ratio: Estimate, videos: int) -> str:
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
            return "the interval is above 1, but it is not shown that the queries help"
        case "inconclusive":
            return "the interval holds 1"


def _controls(against: Mapping[str, Estimate]) -> str:
    remaining = unbeaten(against)
    if not remaining:
        return "the fine pass beats every control"
    named = ", ".join(short_meaning(name) for name in remaining)
    return f"the fine pass is not shown to beat {named}"
