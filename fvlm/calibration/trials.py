"""What an instrument must show on control corpora before its verdicts mean anything; numpy alone.

Each *trial* is a control corpus and a depth of query attention, trained with several seeds. Seeds
are replicates: a video's losses of all of them are resampled together.

Axes: T frames.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from fvlm.core.params import Params
from fvlm.statistics.arms import CONTROLS, Losses
from fvlm.statistics.ratio import ALL, DYNAMIC, Array, Bootstrap, mean_loss, named

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


# Layers and steps: benchmarks/calibration.md. The last blocks of the built-in encoder wash out what
# tells the parts of a picture apart; shallow and deep attention find their way on block 9. Deep
# logits are bounded by the encoder's norm and need a lower temperature.
TRIALS = (
    Trial("positive_control", "positive_control", 0, blocks=12, layer=9, steps=900),
    Trial("positive_control_deep_1", "positive_control", 1, 9, 8, steps=1000, temperature=0.6),
    Trial("positive_control_deep_3", "positive_control", 3, 9, 6, 1600, 0.6, replicated=False),
    Trial("negative_control", "negative_control", 0, blocks=12, layer=9, steps=900),
    Trial("noise_control", "noise_control", 0, 12, 9, steps=400, replicated=False),
)

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


def measure(
    trial: Trial, trainings: Sequence[Trained], *, samples: int, seed: int
) -> dict[str, Any]:
    """Flat figures of one trial, their names beginning with its own.

    NAME_ratio is coarse / fine loss over frames t >= 3; NAME_X is coarse / X likewise: below 1
    where X is worse than the coarse pass. Each has the ends of its interval beside it, NAME_X_low
    and NAME_X_high. All trainings hold the same clips in the same order.
    """
    losses = {name: _join(trainings, name) for name in trainings[0].held_out}
    clips = len(trainings[0].held_out["coarse"])
    video_ids = [str(clip) for clip in range(clips)] * len(trainings)
    seeds = np.repeat([training.seed for training in trainings], clips).tolist()
    bootstrap = Bootstrap(video_ids, samples, seed, seeds)
    coarse, fine = losses["coarse"], losses["fine"]
    figures: dict[str, Any] = {
        **named("ratio", bootstrap.ratio(coarse, fine, DYNAMIC)),
        # Nothing can be gained there: above 1, the coarse pass is handicapped.
        **named("ratio_frame_2", bootstrap.ratio(coarse, fine, slice(1, 2))),
        **named("ratio_all_frames", bootstrap.ratio(coarse, fine, ALL)),
    }
    for name in COMPARED:
        figures |= named(name, bootstrap.ratio(coarse, losses[name], DYNAMIC))
    seen = {name: np.concatenate([t.seen[name] for t in trainings]) for name in ("coarse", "fine")}
    figures["ratio_training_clips"] = _plain_ratio(seen)
    for training in trainings:
        figures[f"ratio_seed_{training.seed}"] = _plain_ratio(training.held_out)
    for name in ("coarse", "fine"):
        figures[f"loss_{name}"] = mean_loss(losses[name], DYNAMIC)
    return {f"{trial.name}_{name}": value for name, value in figures.items()} | {
        f"{trial.name}_videos": clips,
        f"{trial.name}_seeds": len(trainings),
    }


def measure_leak(
    trial: Trial, trainings: Sequence[Trained], *, mean_losses: Array
) -> dict[str, float | None]:
    """How much better each pass is than the mean of the training latents: above 1 it is a leak.

    `mean_losses` [clips,T] of predicting that mean.
    """
    expected = mean_loss(mean_losses)
    assert expected is not None
    gains = {}
    for name in PASSES:
        found = mean_loss(_join(trainings, name))
        gains[f"{trial.name}_gain_{name}"] = expected / found if found else None
    return gains


def failures(figures: dict[str, Any], trials: Sequence[Trial] = TRIALS) -> list[str]:
    """What the instrument does not show, one line each; empty when it may be believed.

    A figure that is missing or undefined is not shown either.
    """
    return [
        line
        for trial in trials
        for name, accepts, wanted in _requirements(trial)
        for line in _missed(f"{trial.name}_{name}", figures, accepts, wanted)
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


def _missed(
    name: str, figures: dict[str, Any], accepts: Callable[[float], bool], wanted: str
) -> Iterator[str]:
    value = figures.get(name)
    if value is None:
        yield f"{name} is {'undefined' if name in figures else 'missing'}, must be {wanted}"
    elif not accepts(value):
        yield f"{name} is {value:.4f}, must be {wanted}"


def _join(trainings: Sequence[Trained], name: str) -> Array:
    return np.concatenate([training.held_out[name] for training in trainings])


def _plain_ratio(losses: Losses) -> float | None:
    coarse, fine = (mean_loss(losses[name], DYNAMIC) for name in ("coarse", "fine"))
    return coarse / fine if coarse is not None and fine else None
