"""Losses of a few held-out clips on the way: a curve to look at, which steers nothing.

It costs a bounded share of the training, whatever the clips cost: a step is a forward and a
backward pass, about COST forwards; all points together take SHARE of that at most. Nothing is
random, and nothing of it reaches weights, optimizer or the choice of the model.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fvlm.clips.batch import Batch
from fvlm.clips.order import evaluated_frames
from fvlm.clips.questions import Reader
from fvlm.clips.reader import rows_of_new_footage
from fvlm.core.seeding import unit_hash
from fvlm.training.distributed import count, mean_over_processes, share_of
from fvlm.training.optim import TrainParams

PREFIX = "val_"  # of the losses in the history
READ = f"{PREFIX}read"  # Validation.content, beside them
SHARE = 0.02
# Forwards that a step is worth; of a frozen encoder inside the model there is no backward pass.
COST = {"features": 3, "frames": 1}
FEWEST, MOST = 5, 20  # points of the curve


@dataclass(frozen=True)
class Validation:
    """load: the held-out clips at these places of 0 .. clips - 1; steps: after which they are read.

    content: 52 bits of a hash of what is read, which a float holds exactly. Not of the steps: those
    of a shorter training that is gone on with are shown, too.
    """

    load: Callable[[range], Batch]
    clips: int
    steps: frozenset[int]
    content: int = 0


def schedule(params: TrainParams, held_out: int) -> tuple[int, frozenset[int]]:
    """How many of the held-out clips are read, and after which steps, the last one included.

    Where FEWEST points with all clips that are wanted would take too long, there are fewer clips;
    0 where not even one fits.
    """
    forwards = int(SHARE * COST[params.input] * params.steps * params.samples_per_step)
    clips = min(params.validate_samples, held_out, forwards // FEWEST)
    if clips == 0:
        return 0, frozenset()
    points = min(MOST, forwards // clips, params.steps)
    ends = (params.steps * point // points for point in range(1, points + 1))
    return clips, frozenset(end - 1 for end in ends)


def plan_validation(held_out: Reader, trained: Reader, params: TrainParams) -> Validation | None:
    """What is read of the held-out clips whose footage was not trained on; None without any.

    Clips are chosen by hash of their keys, so that one more video changes one of them at most.
    """
    new = rows_of_new_footage(held_out, trained)
    new.sort(key=lambda row: unit_hash(held_out.keys[row], "validation"))
    clips, steps = schedule(params, len(new))
    if clips == 0:
        return None
    rows, frames = new[:clips], evaluated_frames(stored=held_out.stored, count=params.num_frames)

    def load(places: range) -> Batch:
        return held_out.read([rows[place] for place in places], frames)

    digest = hashlib.sha256()
    for place in range(clips):
        for tensor in load(range(place, place + 1)).tensors():
            digest.update(tensor.numpy().tobytes())
    return Validation(load, clips, steps, int(digest.hexdigest()[:13], 16))


def of_these_clips(
    history: Sequence[dict[str, float]], validation: Validation | None
) -> list[dict[str, float]]:
    """The rows, with losses of held-out clips only where it is these that were read.

    Held-out clips decide no weight and so do not name the training: it may be older than some.
    """

    def is_shown(name: str, row: dict[str, float]) -> bool:
        if not name.startswith(PREFIX):
            return True
        return bool(validation and row[READ] == validation.content and name != READ)

    return [{name: row[name] for name in row if is_shown(name, row)} for row in history]


def measure(losses: nn.Module, validation: Validation, params: TrainParams) -> dict[str, Tensor]:
    """Means [] over the held-out clips of the losses of `losses`, a module of the objective.

    Every process has to call this; each computes its share of a batch, or all of one that cannot
    be divided equally. Parts that are compiled for training run as they are.
    """
    device = next(losses.parameters()).device
    sums: dict[str, Tensor] = {}
    compiled = params.compile != "none"
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    losses.eval()
    with torch.no_grad(), eager:
        for start in range(0, validation.clips, params.batch_size):
            places = range(start, min(start + params.batch_size, validation.clips))
            own = places if len(places) % count() else share_of(places)
            for name, value in losses(validation.load(own).to(device)).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + len(places) * value
    losses.train()
    names = [name for name in sums if name != "loss"]
    means = mean_over_processes(torch.stack([sums[name] for name in names])) / validation.clips
    found = {f"{PREFIX}{name}": mean for name, mean in zip(names, means, strict=True)}
    return found | {READ: torch.tensor(validation.content)}
