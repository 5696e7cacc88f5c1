"""The arms that an evaluation compares, in the order of every table.

An arm is one way to predict the same latents; all arms see the same clips and frames.
"""

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Losses = dict[str, NDArray[np.float64]]  # [clips,T] by name of the arm

ARMS = {
    "coarse": "coarse pass: the static query",
    "fine": "fine pass: queries predicted by the language model",
    "autoregressive": "fine pass frame by frame, without a coarse pass",
    "static_in_fine": "fine pass with the static query",
    "shuffled": "fine pass with another video's queries",
    "random": "fine pass with random queries",
    "coarse_cls_masked": "coarse pass, CLS masked",
    "fine_cls_masked": "fine pass, CLS masked",
    "persistence": "copy of the previous latent",
    "ar1": "AR(1): between the mean latent and the previous one",
    "mean": "mean latent of the training clips",
}

# message_only, of deep queries that are tokens: is it where the query looks, or what it carries?
# coarse_only, of a model of its own (train.coarse_only): did the fine pass, trained along, spoil
# the coarse pass that it is compared with?
OPTIONAL_ARMS = {
    "message_only": "fine pass with the static query's attention, only carrying the message",
    "coarse_only": "coarse pass of a model trained without fine passes",
}
# Of models of their own (train.pooled_tokens): what is there to see, for one that need not choose?
POOLED = {
    f"pooled_{count}": f"{count} pooled token{'s' * (count > 1)} a frame, no query"
    for count in (1, 4, 16, 49)
}
MEANINGS = ARMS | OPTIONAL_ARMS | POOLED

# What must be worse than the fine pass before a ratio above 1 can be put down to the queries.
CONTROLS = ("static_in_fine", "shuffled", "random")

# What needs no model: where one beats the fine pass, the passes say nothing about seeing.
BASELINES = ("persistence", "ar1", "mean")

# Caption losses of the two passes, of a model that predicts captions: one value a clip.
CAPTIONS = ("caption_coarse", "caption_fine")


def measured_arms(names: Container[str]) -> dict[str, str]:
    """Arms and their meanings in the order of every table; optional ones where `names` has them."""
    others = (OPTIONAL_ARMS | POOLED).items()
    return ARMS | {arm: text for arm, text in others if arm in names}


def measured_controls(names: Container[str]) -> list[str]:
    """The controls, and optional arms where `names` has them: each of them must lose."""
    return [*CONTROLS, *(arm for arm in OPTIONAL_ARMS if arm in names)]


@dataclass(frozen=True)
class ClipName:
    """Sample key of a clip, the video it was taken from, and what that video was cut from.

    start: seconds from the video's first frame; None: not known. Clips of one group are not
    independent of each other; empty: the video is its own group.
    """

    key: str
    video_id: str
    group: str = ""
    start: float | None = None

    @property
    def group_id(self) -> str:
        """The group, or the video where there is none."""
        return self.group or self.video_id
