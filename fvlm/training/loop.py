"""The training loop, from batches to a trained model; reads top to bottom."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from fvlm.clips.batch import Batch
from fvlm.core.device import peak_memory_gib, reset_peak_memory
from fvlm.core.errors import TrainingError
from fvlm.core.progress import Progress
from fvlm.core.seeding import torch_seed
from fvlm.model.foveated import FoveatedModel
from fvlm.training.blocks import compile_parts, recompute_blocks
from fvlm.training.checkpoint import Checkpoints, TrainState
from fvlm.training.distributed import (
    distribute,
    is_main,
    mean_over_processes,
    share_of,
    without_exchange,
)
from fvlm.training.objective import Objective, add_noise, batch_losses
from fvlm.training.optim import TrainParams, make_optimizer, make_schedule, set_learning_rate
from fvlm.training.prefetch import prefetched
from fvlm.training.validation import Validation, measure

Row = dict[str, float]


class OutOfTimeError(Exception):
    """Training stopped early with its state saved; running it again continues."""


class Losses(nn.Module):
    """The objective as the forward of a module, which is where several processes hook in."""

    def __init__(
        self, model: FoveatedModel, params: TrainParams, objective: Objective = batch_losses
    ) -> None:
        super().__init__()
        self.model, self.params, self.objective = model, params, objective

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses of a batch; `loss` is the one to minimise."""
        return self.objective(self.model, batch, self.params)


def train(
    model: FoveatedModel,
    load_batch: Callable[[range], Batch],
    params: TrainParams,
    *,
    checkpoints: Checkpoints,
    device: torch.device,
    deadline: float | None = None,
    on_resume: Callable[[list[Row]], None] = lambda _: None,
    on_step: Callable[[Row], None] = lambda _: None,
    title: str = "train",
    late: bool | None = None,
    validation: Validation | None = None,
    objective: Objective = batch_losses,
) -> TrainState:
    """Train until `params.max_samples` clips were seen, resuming from the newest checkpoint.

    `load_batch` returns the clips at the given positions of the sample stream; of several
    processes each asks for its share. `on_resume` gets the history of the checkpoint, `on_step` the
    row of each step made here. `deadline` on the monotonic clock: `params.max_hours` from now,
    unless given. Raises OutOfTimeError after it, a SIGTERM or Ctrl-C, with the state saved, and
    TrainingError when a loss or gradient is not finite, with nothing saved from that step.

    validation: clips whose losses are noted beside those of some steps, `val_...`, and no more.

    late: read the figures of a step while the next one is computed, so that a GPU never waits for
    Python; by default so on CUDA, unless weights are held in parts.
    """
    model.train()
    reset_peak_memory(device)
    compile_parts(model, params.compile)
    recompute_blocks(model, params.gradient_checkpointing)
    module = Losses(model, params, objective)
    losses = distribute(module, model, params.parallel, params.dtype, device)
    if late is None:
        late = device.type == "cuda" and not isinstance(losses, FSDPModule)
    optimizer = make_optimizer(model, params)
    factor = make_schedule(
        optimizer,
        schedule=params.schedule,
        warmup_steps=params.warmup_steps,
        steps=params.steps,
    )
    state = checkpoints.resume(model, optimizer, params.steps)
    on_resume(state.history)
    started, first = time.monotonic(), state.step
    if deadline is None:
        deadline = started + params.max_hours * 3600
    every = max(1, params.checkpoint_samples // params.samples_per_step)

    def asked() -> bool:
        return stop_requested() or time.monotonic() > deadline

    with (
        _stop_requests() as stop_requested,
        prefetched(load_batch, _micro_batches(params, first), device) as batches,
        Progress(
            title, total=params.steps, unit="step", initial=first, silent=not is_main()
        ) as progress,
    ):
        unread: list[Step] = []

        def read() -> bool:
            """Note the step computed first; is training to stop?"""
            row, stop = unread.pop(0).read()
            state.step += 1
            state.history.append(row)
            on_step(row)
            rate = (state.step - first) * params.samples_per_step / (time.monotonic() - started)
            progress.advance(1, **_notes(row, rate, device, fine=model.fine_iterations > 0))
            return stop

        for step in range(first, params.steps):
            set_learning_rate(optimizer, params.lr * factor(step))
            done = train_step(losses, optimizer, batches, params, step=step, asked=asked, late=late)
            if validation and step in validation.steps:
                done = replace(done, held_out=measure(losses, validation, params))
            unread.append(done)
            finished = step + 1 == params.steps
            saving = finished or (step + 1) % every == 0
            stopping = len(unread) > late and read()
            while unread and (saving or stopping):
                stopping |= read()
            stopping &= not finished
            if saving or stopping:
                checkpoints.save(model, optimizer, state)
            if stopping:
                raise OutOfTimeError(
                    f"stopped after step {state.step} of {params.steps}; the state is saved: "
                    "run again to continue"
                )
    return state


@dataclass(frozen=True)
class Step:
    """An optimizer step that was computed, or that a GPU is still computing.

    figures [n]: the losses by name, the gradient's norm and the share of processes that were asked
    to stop, means over all processes; own_loss: that of this process. held_out: losses [] of
    held-out clips after the step, where these were read.
    """

    number: int
    params: TrainParams
    names: list[str]
    figures: Tensor
    own_loss: Tensor
    lr: float
    keys: list[str]
    copied: torch.cuda.Event | None
    held_out: dict[str, Tensor] = field(default_factory=dict)

    def read(self) -> tuple[Row, bool]:
        """Its row of the loss curves, and whether any process was asked to stop; waits for it.

        Raises TrainingError when its loss or gradient is not finite.
        """
        if self.copied:
            self.copied.synchronize()
        *means, votes = self.figures.tolist()
        values = dict(zip(self.names, means, strict=True))
        samples = (self.number + 1) * self.params.samples_per_step
        row: Row = {"step": self.number, "samples": samples, **values, "lr": self.lr}
        if not (math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"])):
            # Gradients are shared by now; the loss still tells in which process it began.
            elsewhere = math.isfinite(self.own_loss) and not math.isfinite(row["loss"])
            raise TrainingError(
                f"step {self.number}: loss {row['loss']}, gradient norm {row['gradient_norm']}: "
                "not finite; nothing of this step was saved. Lower train.lr or inspect its clips: "
                + ("another process names them" if elsewhere else ", ".join(self.keys))
            )
        seen = {name: float(value) for name, value in self.held_out.items()}
        row |= {name: value for name, value in seen.items() if math.isfinite(value)}
        return row, votes > 0


def train_step(
    losses: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    params: TrainParams,
    *,
    step: int,
    asked: Callable[[], bool] = lambda: False,
    late: bool = False,
) -> Step:
    """One optimizer step over `gradient_accumulation_steps` batches.

    `asked`: is this process to stop, by the end of the last backward pass? Where the loss or the
    gradient is not finite, weights and moments stay as they are: TrainingError is raised here or,
    `late`, when the step is read; the device then skips the update by itself.
    """
    torch.manual_seed(torch_seed(params.seed, "step", step))
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    keys: list[str] = []
    last = params.gradient_accumulation_steps - 1
    for number in range(params.gradient_accumulation_steps):
        positions = _positions(params, step * params.gradient_accumulation_steps + number)
        batch = add_noise(next(batches), positions, params)
        keys += batch.keys
        with nullcontext() if number == last else without_exchange(losses):
            values = losses(batch)
            (values["loss"] / params.gradient_accumulation_steps).backward()
        for name, value in values.items():
            part = value.detach() / params.gradient_accumulation_steps
            sums[name] = sums[name] + part if name in sums else part
    norm = _clip_gradients(optimizer, params.max_grad_norm)
    # The one moment of a step at which processes wait for each other.
    vote = torch.full_like(norm, float(asked()))
    figures = mean_over_processes(torch.stack([*sums.values(), norm, vote]))
    done = Step(
        number=step,
        params=params,
        names=[*sums, "gradient_norm"],
        figures=figures,
        own_loss=sums["loss"],
        lr=optimizer.param_groups[0]["lr"],
        keys=keys,
        copied=None,
    )
    if late:
        # Fused AdamW leaves out an update that this flag says is not finite.
        optimizer.found_inf = 1 - figures.isfinite().all().float()  # type: ignore[attr-defined]
        done = _copied(done)
    else:
        done.read()
    optimizer.step()
    return done


def _copied(step: Step) -> Step:
    """The step with its figures on their way to the CPU, in the order of the GPU's own work."""
    if not step.figures.is_cuda:
        return step
    figures = torch.empty_like(step.figures, device="cpu", pin_memory=True)
    figures.copy_(step.figures, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return replace(step, figures=figures, copied=copied)


def _clip_gradients(optimizer: torch.optim.Optimizer, largest: float) -> Tensor:
    """Scale all gradients to a norm of at most `largest`; returns the norm [] that they had."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, largest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _notes(row: Row, rate: float, device: torch.device, *, fine: bool) -> dict[str, str]:
    """What the progress line says of a step, of a model with fine passes or without."""
    shown = {name: value for name, value in row.items() if name.startswith("loss_")}
    if not fine:  # the coarse losses stand for the fine ones, too
        shown = {name: value for name, value in shown.items() if name.endswith("coarse")}
    return {
        **{name: f"{value:.4f}" for name, value in shown.items()},
        "samples_per_second": f"{rate:.1f}",
        "memory_gib": f"{peak_memory_gib(device):.1f}",
    }


def _micro_batches(params: TrainParams, first_step: int) -> Iterator[range]:
    """Positions of every forward of this process, from `first_step` to the end."""
    forwards = params.gradient_accumulation_steps
    return (_positions(params, n) for n in range(first_step * forwards, params.steps * forwards))


def _positions(params: TrainParams, forward: int) -> range:
    """This process's clips in one forward of the training; forwards are counted from 0."""
    size = params.batch_size
    return share_of(range(forward * size, (forward + 1) * size))


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a request that is honoured at the end of the step in work.

    A second Ctrl-C does not wait. Only the main thread may handle signals; trained in another one,
    both end the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = threading.Event()

    def request(number: int, _frame: object) -> None:
        if number == signal.SIGINT and requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
