"""The verdict in words, from what was found on held-out clips; pure logic.

It rests on frames t >= 3: before them no predicted query can have helped. A ratio counts only where
it exceeds those of frame 1 (no image was read) and of frame 2 (a token read with a learned query):
what stands there already comes from a handicapped pass, not from looking.
"""

from collections.abc import Mapping

from fvlm.statistics.evaluation import HeldOut, Label, short_meaning
from fvlm.statistics.ratio import Estimate

PROOF_ABOVE, PROMISING_ABOVE = 1.05, 1.15
# Two passes that compute the same thing differ by rounding: that is no result.
ROUNDING = 1e-4
# With fewer groups all of one sign, even a sign test cannot reject at 5% (2 * 0.5**5 = 0.06).
MIN_GROUPS = 6

DEMANDS: dict[Label, str] = {
    "worse": "the interval is below 1, also relative to frames 1 and 2",
    "inconclusive": "nothing of all this is shown",
    "one_training": "as validated, but from one training: another seed may say otherwise",
    "validated": "several trainings; the interval is above 1, also relative to frames 1 and 2, "
    "and the fine pass beats every control and every baseline",
    "proof_of_concept": f"as validated, and the interval begins at {PROOF_ABOVE} or above",
    "very_promising": f"as validated, and the interval begins at {PROMISING_ABOVE} or above",
}


def decide(found: HeldOut) -> Label:
    """The label whose demands, see DEMANDS, are met."""
    ratio, guards = found.coarse_fine_ratio_dynamic, (found.over_frame_1, found.over_frame_2)
    if found.groups < MIN_GROUPS or not found.coarse_trained:
        return "inconclusive"
    if all(is_below(estimate) for estimate in (ratio, *guards)):
        return "worse"
    if not all(is_above(estimate) for estimate in (ratio, *guards)) or ratio.low is None:
        return "inconclusive"
    if unbeaten(found.controls) or unbeaten(found.baselines):
        return "inconclusive"
    if found.seeds == 1:
        return "one_training"
    if ratio.low >= PROMISING_ABOVE:
        return "very_promising"
    return "proof_of_concept" if ratio.low >= PROOF_ABOVE else "validated"


def is_above(ratio: Estimate) -> bool:
    """Whether the whole interval is above 1."""
    return ratio.low is not None and ratio.low > 1 + ROUNDING


def is_below(ratio: Estimate) -> bool:
    """Whether the whole interval is below 1."""
    return ratio.high is not None and ratio.high < 1 - ROUNDING


def unbeaten(against: Mapping[str, Estimate]) -> list[str]:
    """Arms that the fine pass does not beat: the interval of their / fine loss is not above 1."""
    return [name for name, ratio in against.items() if not is_above(ratio)]


def in_words(label: Label) -> str:
    """A label as a reader sees it."""
    return label.replace("_", " ")


def headline(found: HeldOut) -> str:
    """The result in a few words, for a table of metrics."""
    ratio = found.coarse_fine_ratio_dynamic
    if ratio.value is None:
        return f"{in_words(decide(found))}: undefined"
    ends = "" if ratio.low is None else f" ({ratio.low:.4f} to {ratio.high:.4f})"
    return f"{in_words(decide(found))}: {ratio.value:.4f}{ends}, {count_videos(found)}"


def describe(found: HeldOut) -> str:
    """The result in one English sentence."""
    label, ratio = decide(found), found.coarse_fine_ratio_dynamic
    if ratio.value is None:
        return "Inconclusive: the coarse/fine ratio is undefined on these clips."
    parts = [
        f"{in_words(label).capitalize()}: over frames 3 and later of {count_videos(found)} the "
        f"coarse loss is {ratio.value:.4f} times the fine loss ({_interval(ratio)})",
        _reason(found),
        *_guard(found),
        _controls(found.controls),
        *_baselines(found.baselines),
    ]
    if found.captions and (said := _captions(found)):
        parts.append(said)
    if found.seeds == 1:
        parts.append("one training: what another seed would change is not in the interval")
    return "; ".join(parts) + "."


def describe_skill(found: HeldOut) -> str:
    """What the fine pass gains over a decaying copy, and what a null means without; a sentence."""
    skill = found.skill_over_ar1
    if skill.value is None:
        return ""
    gain = f"Skill over AR(1), a decaying copy of the previous latent: {_signed(skill.value)}"
    if skill.low is not None and skill.high is not None:
        gain += f" (95% interval {_signed(skill.low)} to {_signed(skill.high)})"
    if skill.low is not None and skill.low > 0:
        return f"{gain}: the model predicts what copying does not."
    return (
        f"{gain}: that the model predicts more than a copy is not shown. Both passes may be the "
        "same copy: a ratio near 1, however narrow its interval, speaks of copying, not of looking."
    )


def describe_gap(found: HeldOut) -> str:
    """What one token by query brings of what several tokens do; empty where none were trained."""
    parts = []
    for arm, gap in found.gap_closed.items():
        if gap.value is None:
            parts.append(f"{short_meaning(arm)}: not shown to be better than the coarse pass")
        else:
            ends = "" if gap.low is None else f" ({gap.low:.0%} to {gap.high:.0%})"
            parts.append(
                f"{short_meaning(arm)}: the fine pass, with one, closes {gap.value:.0%}{ends} of "
                "their gap to the coarse pass"
            )
    return "; ".join(parts).capitalize() + "." if parts else ""


def _signed(skill: float) -> str:
    return f"{skill:+.2%}"


def describe_power(found: HeldOut) -> str:
    """What so many clips can tell, in one sentence; empty without an interval."""
    if found.detectable_ratio is None:
        return ""
    wanted = found.groups_for_ratio_1_05
    take = (
        "it takes more trainings to tell 1.05"
        if wanted is None
        else f"to tell 1.05 it takes {wanted} {_unit(found, wanted)}"
    )
    return (
        f"With the spread that was measured, {count_videos(found)} tell a true ratio of "
        f"{found.detectable_ratio:.4f} from 1 in 80% of repeats; {take}."
    )


def count_videos(found: HeldOut) -> str:
    """`20 videos`; where several are of one, `33 clips of 20 videos of 6 films`."""
    videos = "1 video" if found.videos == 1 else f"{found.videos} videos"
    if found.clips != found.videos:
        videos = f"{found.clips} clips of {videos}"
    if found.groups == found.videos:
        return videos
    return f"{videos} of {found.groups} {_unit(found, found.groups)}"


def _unit(found: HeldOut, count: int) -> str:
    unit = "video" if found.groups == found.videos else "film"
    return unit if count == 1 else f"{unit}s"


def _interval(ratio: Estimate) -> str:
    if ratio.low is None or ratio.high is None:
        return "no interval: that takes at least 2 videos"
    return f"95% interval {ratio.low:.4f} to {ratio.high:.4f}"


def _reason(found: HeldOut) -> str:
    ratio = found.coarse_fine_ratio_dynamic
    if not found.coarse_trained:
        return "the coarse pass was not trained (train.lambda_coarse: 0), the ratio says nothing"
    if found.groups < MIN_GROUPS:
        return f"a verdict takes at least {MIN_GROUPS} {_unit(found, MIN_GROUPS)}"
    if is_below(ratio):
        return "the whole interval is below 1"
    if not is_above(ratio):
        return "the interval holds 1"
    bounds = [bound for bound in (PROMISING_ABOVE, PROOF_ABOVE, 1) if (ratio.low or 0) >= bound]
    shown = f"the whole interval is above {bounds[0]}"
    if decide(found) == "inconclusive":
        return f"{shown}, but it is not shown that the queries help"
    return shown


def _guard(found: HeldOut) -> list[str]:
    """What frames 1 and 2 say against a ratio that would count otherwise."""
    ratio = found.coarse_fine_ratio_dynamic
    tells = is_above if is_above(ratio) else is_below
    guards = {1: found.over_frame_1, 2: found.over_frame_2}
    return [
        f"relative to frame {frame}, where looking cannot help, the ratio is "
        + ("undefined" if guard.value is None else f"{guard.value:.4f} ({_interval(guard)})")
        + f": one of the passes may be handicapped at frame {frame} already"
        for frame, guard in guards.items()
        if tells(ratio) and not tells(guard)
    ]


def _controls(against: Mapping[str, Estimate]) -> str:
    remaining = unbeaten(against)
    if not remaining:
        return "the fine pass beats every control"
    named = ", ".join(short_meaning(name) for name in remaining)
    return f"the fine pass is not shown to beat {named}"


def _baselines(against: Mapping[str, Estimate]) -> list[str]:
    """Each baseline that beats the fine pass, or may do so."""
    return [
        f"{short_meaning(name)} "
        + (
            f"beats the fine pass ({against[name].value:.4f} of its loss)"
            if (against[name].value or 1) < 1
            else "is not shown to be worse than the fine pass"
        )
        for name in unbeaten(against)
    ]


def _captions(found: HeldOut) -> str:
    """Names the passes whose captions are worse than a uniform guess."""
    captions = found.captions
    assert captions is not None
    losses = {"coarse": captions.coarse, "fine": captions.fine}
    worse = [name for name, loss in losses.items() if loss is not None and loss > captions.uniform]
    if not worse:
        return ""
    return (
        f"captions of the {' and the '.join(worse)} pass are predicted worse than by a uniform "
        f"guess ({captions.uniform:.2f})"
    )
