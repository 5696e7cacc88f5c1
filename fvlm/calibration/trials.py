"""What an instrument must show on control corpora before its verdicts mean anything.

Each *trial* is a control corpus and a depth of query attention, trained with several seeds. Seeds
are replicates: a video's losses of all of them are resampled together.

Axes: T frames.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fvlm.calibration.cases import Case
from fvlm.core.document import Document, flatten
from fvlm.core.params import Params
from fvlm.statistics.arms import ARMS, CONTROLS, Losses
from fvlm.statistics.ratio import ALL, DYNAMIC, Array, Bootstrap, Estimate, mean_loss

COMPARED = (*CONTROLS, "autoregressive", "persistence")
PASSES = ("coarse", "fine", "autoregressive")


class CalibrateParams(Params):
    """Section `calibrate` of params.yaml."""

    seeds: list[int] = Field(min_length=1)
    processes: int = Field(ge=1)


@dataclass(frozen=True)
class Trial:
    """A control corpus (`collect.source`) and a query attention, trained for `steps`.

    `name` is the prefix of its figures; `blocks` and `layer` are `encode.dino_layers` and
    `encode.layer`. replicated: trained with every seed, not only the first.
    """

    name: str
    corpus: str
    query_layers: int
    blocks: int
    layer: int
    steps: int
    temperature: float = 1.0
    replicated: bool = True
    coarse_only: bool = False  # whether the first seed has a twin without fine passes


# Layers and steps: benchmarks/calibration.md. The last blocks of the built-in encoder wash out what
# tells the parts of a picture apart; shallow and deep attention find their way on block 9. Deep
# logits are bounded by the encoder's norm and need a lower temperature.
TRIALS = (
    Trial("positive_control", "positive_control", 0, blocks=12, layer=9, steps=900),
    Trial("positive_control_deep_1", "positive_control", 1, 9, 8, 1000, 0.6, coarse_only=True),
    Trial("positive_control_deep_3", "positive_control", 3, 9, 6, 1600, 0.6, replicated=False),
    Trial("negative_control", "negative_control", 0, blocks=12, layer=9, steps=900),
    Trial("noise_control", "noise_control", 0, 12, 9, steps=400, replicated=False),
)

# Whose first model the cases in cases.py change; it must be deep for the message channel.
MESSAGE_TRIAL, SPOILT_TRIAL = TRIALS[1], TRIALS[3]

# Acceptance, over frames t >= 3 of held-out clips.
POSITIVE_ABOVE, POSITIVE_LOW_ABOVE = 1.15, 1.05
STATIC_BELOW, SHUFFLED_BELOW, FRAME_2_BELOW = 1.03, 0.9, 1.03
NEGATIVE_WITHIN, LEAK_BELOW = 0.01, 1.01


@dataclass(frozen=True)
class Trained:
    """Losses [clips,T] by arm of one training: on held-out clips, on training clips."""

    seed: int
    held_out: Losses
    seen: Losses


class TrialResult(Document):
    """What one trial shows, over frames t >= 3 of held-out clips where nothing else is said.

    ratio: coarse / fine loss. An arm's name: coarse / its loss, below 1 where it is worse than the
    coarse pass. ratio_frame_2: nothing can be gained there: above 1, the coarse pass is
    handicapped. gains: of predicting the training latents' mean, its error / that of each pass over
    all frames: above 1, something has seen the frame. coarse_only: coarse pass of a model trained
    without fine passes / fine loss, of the first seed: above 1 where the gain is not a coarse pass
    that the fine one spoilt.
    """

    ratio: Annotated[Estimate, "{}_ratio"]
    ratio_frame_2: Annotated[Estimate, "{}_ratio_frame_2"]
    ratio_all_frames: Annotated[Estimate, "{}_ratio_all_frames"]
    against: Annotated[dict[str, Estimate], "{}_{}"]
    ratio_training_clips: Annotated[Estimate, "{}_ratio_training_clips"]
    by_seed: Annotated[dict[int, Estimate], "{}_ratio_seed_{}"]
    loss_coarse: Annotated[float | None, "{}_loss_coarse"]
    loss_fine: Annotated[float | None, "{}_loss_fine"]
    coarse_only: Annotated[Estimate | None, "{}_coarse_only"]
    videos: Annotated[int, "{}_videos"]
    seeds: Annotated[int, "{}_seeds"]
    gains: Annotated[dict[str, float | None], "{}_gain_{}"]


class Calibration(Document):
    """metrics/calibrate.json: trials and cases by name, and what they miss."""

    calibrated: bool
    failures: list[str]
    cases: dict[str, Case]
    trials: dict[str, TrialResult]


def measure(trainings: Sequence[Trained], *, samples: int, seed: int) -> TrialResult:
    """What the trainings of one trial show; all hold the same clips in the same order."""
    losses = {name: _join(trainings, name) for name in ARMS}
    clips = len(trainings[0].held_out["coarse"])
    seeds = [training.seed for training in trainings]
    bootstrap = _bootstrap(clips, seeds, samples, seed)
    coarse, fine = losses["coarse"], losses["fine"]
    seen = {name: np.concatenate([t.seen[name] for t in trainings]) for name in ("coarse", "fine")}
    seen_clips = _bootstrap(len(trainings[0].seen["coarse"]), seeds, samples, seed)
    alone = _bootstrap(clips, [0], samples, seed)
    twin = trainings[0].held_out.get("coarse_only")
    return TrialResult(
        ratio=bootstrap.ratio(coarse, fine, DYNAMIC),
        ratio_frame_2=bootstrap.ratio(coarse, fine, slice(1, 2)),
        ratio_all_frames=bootstrap.ratio(coarse, fine, ALL),
        against={name: bootstrap.ratio(coarse, losses[name], DYNAMIC) for name in COMPARED},
        ratio_training_clips=seen_clips.ratio(seen["coarse"], seen["fine"], DYNAMIC),
        by_seed={
            t.seed: alone.ratio(t.held_out["coarse"], t.held_out["fine"], DYNAMIC)
            for t in trainings
        },
        loss_coarse=mean_loss(coarse, DYNAMIC),
        loss_fine=mean_loss(fine, DYNAMIC),
        coarse_only=alone.ratio(twin, trainings[0].held_out["fine"], DYNAMIC)
        if twin is not None
        else None,
        videos=clips,
        seeds=len(trainings),
        gains=_gains(losses),
    )


def _bootstrap(clips: int, seeds: Sequence[int], samples: int, seed: int) -> Bootstrap:
    """Every clip is a video of its own."""
    video_ids = [str(clip) for clip in range(clips)] * len(seeds)
    return Bootstrap(video_ids, samples, seed, np.repeat(seeds, clips).tolist())


def _gains(losses: Losses) -> dict[str, float | None]:
    expected = mean_loss(losses["mean"])
    assert expected is not None
    found = {name: mean_loss(losses[name]) for name in PASSES}
    return {name: expected / loss if loss else None for name, loss in found.items()}


def figures_of(results: Mapping[str, TrialResult]) -> dict[str, Any]:
    """The figures of trials by their names, which begin with the trial's own."""
    return {
        f"{trial}{name}": value
        for trial, result in results.items()
        for name, value in flatten(result).items()
    }


def failures(figures: Mapping[str, Any], trials: Sequence[Trial] = TRIALS) -> list[str]:
    """What the instrument does not show, one line each; empty when it may be believed.

    A figure that is missing or undefined is not shown either.
    """
    return [
        line
        for trial in trials
        for name, accepts, wanted in _requirements(trial)
        for line in missed(f"{trial.name}_{name}", figures, accepts, wanted)
    ]


Requirement = tuple[str, Callable[[float], bool], str]


def _requirements(trial: Trial) -> list[Requirement]:
    """Figures of a trial, by their names after its own, and what is accepted of each."""
    if trial.corpus == "positive_control":
        return [
            ("ratio", lambda value: value >= POSITIVE_ABOVE, f">= {POSITIVE_ABOVE}"),
            ("ratio_low", lambda value: value > POSITIVE_LOW_ABOVE, f"> {POSITIVE_LOW_ABOVE}"),
            ("static_in_fine", lambda value: value <= STATIC_BELOW, f"<= {STATIC_BELOW}"),
            ("shuffled", lambda value: value < SHUFFLED_BELOW, f"< {SHUFFLED_BELOW}"),
            ("ratio_frame_2", lambda value: value <= FRAME_2_BELOW, f"<= {FRAME_2_BELOW}"),
        ]
    if trial.corpus == "negative_control":
        wanted = f"within {NEGATIVE_WITHIN} of 1"
        names = ("ratio", *CONTROLS)
        return [(name, lambda value: abs(value - 1) <= NEGATIVE_WITHIN, wanted) for name in names]
    wanted = f"<= {LEAK_BELOW}: something has seen the frame"
    return [(f"gain_{name}", lambda value: value <= LEAK_BELOW, wanted) for name in PASSES]


def missed(
    name: str, figures: Mapping[str, Any], accepts: Callable[[float], bool], wanted: str
) -> Iterator[str]:
    """A line where the figure `name` is not accepted, or not there."""
    value = figures.get(name)
    if value is None:
        yield f"{name} is {'undefined' if name in figures else 'missing'}, must be {wanted}"
    elif not accepts(value):
        yield f"{name} is {value:.4f}, must be {wanted}"


def _join(trainings: Sequence[Trained], name: str) -> Array:
    return np.concatenate([training.held_out[name] for training in trainings])
