"""Cases are judged by what evaluate says of them; models and clips that are made for them."""

import numpy as np
import pytest

from fvlm.calibration.cases import FILMS, judge_cases, missed_cases
from fvlm.statistics.arms import ARMS, ClipName, Losses
from fvlm.statistics.evaluation import HeldOut
from fvlm.statistics.summary import summarize

CLIPS, T = 24, 6


def held_out(clips: list[ClipName], *, early: float, message: float = 2.0) -> HeldOut:
    """Coarse is 1.2 times fine loss from frame 3 on and `early` times before."""
    rng = np.random.default_rng(0)
    base = np.tile(rng.uniform(1, 2, (FILMS, T)), (len(clips) // FILMS, 1))
    made: Losses = dict.fromkeys((*ARMS, "message_only"), 2.0 * base)
    made |= {"fine": base, "message_only": message * base}
    made["coarse"] = base * np.array([early] * 2 + [1.2] * (T - 2)) * (1 + base / 1000)
    return summarize({0: made, 1: made}, clips, samples=200, seed=0).held_out


def cases(**changes: HeldOut) -> dict[str, HeldOut]:
    """All three as they must be."""
    videos = [ClipName(f"c{n}", f"v{n}") for n in range(CLIPS)]
    films = [ClipName(f"c{n}", f"v{n}", f"f{n % FILMS}") for n in range(CLIPS)]
    made = {
        "handicapped_coarse": held_out(videos, early=1.2),
        "message_channel": held_out(videos, early=1.0, message=1.0),
        "replicates": held_out(films, early=1.0),
        "replicates_alone": held_out(videos[:FILMS], early=1.0),
    }
    return made | changes


def test_all_three_are_caught() -> None:
    judged = judge_cases(cases())
    assert {name: case.caught for name, case in judged.items()} == {
        "handicapped_coarse": 1,
        "message_channel": 1,
        "replicates": 1,
    }
    assert missed_cases(judged) == []


VIDEOS = [ClipName(f"c{n}", f"v{n}") for n in range(CLIPS)]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("handicapped_coarse", held_out(VIDEOS, early=1.0)),  # a verdict was given
        ("message_channel", held_out(VIDEOS, early=1.0)),  # the control did not see it
        ("replicates", held_out(VIDEOS, early=1.0)),  # copies counted as videos
    ],
)
def test_what_fools_the_verdict_is_told(name: str, found: HeldOut) -> None:
    judged = judge_cases(cases(**{name: found}))
    assert [case for case, result in judged.items() if not result.caught] == [name]
    (line,) = missed_cases(judged)
    assert line.startswith(f"{name}_caught is 0, must be 1: verdict {judged[name].verdict}")
