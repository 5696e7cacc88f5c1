"""A training that is to be longer than one that was finished: where it begins, and why."""

from typing import Any

from fvlm.training.optim import TrainParams


def whatever_length(identity: dict[str, Any]) -> dict[str, Any]:
    """What a training shares with longer and shorter ones."""
    train = {key: value for key, value in identity["train"].items() if key != "max_samples"}
    return identity | {"train": train}


def where_it_begins(params: TrainParams, reached: list[int], before: int) -> str:
    """What to say of a training that differs in nothing but its length from one done before.

    reached: steps of the checkpoints at hand; before: steps of the longest shorter training that
    was finished, or 0.
    """
    at_hand = [step for step in reached if step <= params.steps]
    if at_hand:
        ended = before == max(at_hand)
        return f"goes on where the training of {before} steps ended" * ended
    if reached:
        return (
            f"starts at step 0: its state is that of step {min(reached)}, and train.max_samples "
            f"now ends it after step {params.steps}"
        )
    if before and params.schedule == "cosine":
        return (
            f"starts at step 0: the cosine of the {before} steps that were trained before ended at "
            "rate 0, and a longer one has other rates from its first step on. A training with "
            "train.schedule: constant goes on where a shorter one ended"
        )
    if before:
        return (
            f"starts at step 0: {before} of its steps were trained before, but their state is not "
            "kept any more (docs/scale.md)"
        )
    return ""
