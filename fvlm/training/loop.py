"""The training loop, from batches to a trained model; reads top to bottom."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import nn

from fvlm.errors import TrainingError
from fvlm.models.foveated import FoveatedModel
from fvlm.progress import Progress
from fvlm.seeding import torch_seed
from fvlm.training.checkpoint import Checkpoints, TrainState
from fvlm.training.objective import Batch, batch_losses
from fvlm.training.optim import TrainParams, make_optimizer, make_schedule, set_learning_rate

Row = dict[str, float]


class OutOfTimeError(Exception):
    """Training stopped early with its state saved; running it again continues."""


def train(
    model: FoveatedModel,
    load_batch: Callable[[range], Batch],
    params: TrainParams,
    *,
    checkpoints: Checkpoints,
    device: torch.device,
    on_step: Callable[[Row], None] = lambda _: None,
) -> TrainState:
    """Train until `params.max_samples` clips were seen, resuming from the newest checkpoint.

    `load_batch` returns the clips at the given positions of the sample stream.
    Raises OutOfTimeError after `params.max_hours` or a SIGTERM, with the state saved, and
    TrainingError when a loss or gradient is not finite, with nothing saved from that step.
    """
    model.to(device).train()
    optimizer = make_optimizer(model, params)
    factor = make_schedule(optimizer, warmup_steps=params.warmup_steps, steps=params.steps)
    state = checkpoints.resume(model, optimizer)
    deadline = time.monotonic() + params.max_hours * 3600
    size = params.samples_per_step
    every = max(1, params.checkpoint_samples // size)
    with (
        _stop_requests() as stop_requested,
        _prefetched(load_batch, _micro_batches(params, state.step)) as batches,
        Progress("train", total=params.steps, unit="step", initial=state.step) as progress,
    ):
        for step in range(state.step, params.steps):
            set_learning_rate(optimizer, params.lr * factor(step))
            row = train_step(model, optimizer, batches, params, step=step, device=device)
            state.step = step + 1
            state.history.append(row)
            on_step(row)
            ratio = row["loss_coarse"] / row["loss_fine"]
            progress.advance(loss=f"{row['loss']:.4f}", coarse_fine_ratio=f"{ratio:.4f}")
            finished = state.step == params.steps
            stopping = not finished and (stop_requested() or time.monotonic() > deadline)
            if finished or stopping or state.step % every == 0:
                checkpoints.save(model, optimizer, state)
            if stopping:
                raise OutOfTimeError(
                    f"stopped after step {state.step} of {params.steps}; the state is saved: "
                    "run `dvc repro` again to continue"
                )
    return state


def train_step(
    model: FoveatedModel,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    params: TrainParams,
    *,
    step: int,
    device: torch.device,
) -> Row:
    """One optimizer step over `accumulation_steps` batches; returns its row of the loss curves."""
    torch.manual_seed(torch_seed(params.seed, "step", step))
    optimizer.zero_grad(set_to_none=True)
    sums: Row = {}
    keys: list[str] = []
    for _ in range(params.accumulation_steps):
        batch = next(batches).to(device)
        keys += batch.keys
        losses = batch_losses(model, batch, params)
        (losses["loss"] / params.accumulation_steps).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() / params.accumulation_steps
    norm = nn.utils.clip_grad_norm_(model.parameters(), params.clip_norm).item()
    if not (math.isfinite(sums["loss"]) and math.isfinite(norm)):
        raise TrainingError(
            f"step {step}: loss {sums['loss']}, gradient norm {norm}: not finite; nothing of this "
            f"step was saved. Lower train.lr or inspect its clips: {', '.join(keys)}"
        )
    optimizer.step()
    rate = optimizer.param_groups[0]["lr"]
    samples = (step + 1) * params.samples_per_step
    return {
        "step": step,
        "samples": samples,
        **sums,
        "lr": rate,
        "gradient_norm": norm,
    }


def _micro_batches(params: TrainParams, first_step: int) -> Iterator[range]:
    """Positions of every forward from `first_step` to the end."""
    size = params.batch_size
    for number in range(
        first_step * params.accumulation_steps, params.steps * params.accumulation_steps
    ):
        yield range(number * size, (number + 1) * size)


@contextmanager
def _prefetched(
    load_batch: Callable[[range], Batch], positions: Iterator[range]
) -> Iterator[Iterator[Batch]]:
    """Load the next batch on a thread while the current one is computed; order is kept."""

    def stream(executor: ThreadPoolExecutor) -> Iterator[Batch]:
        pending = None
        for wanted in positions:
            following = executor.submit(load_batch, wanted)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as executor:
        yield stream(executor)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM into a request that is honoured after the step in work."""
    requested = False

    def handler(_signal: int, _frame: object) -> None:
        nonlocal requested
        requested = True

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGTERM, before)
