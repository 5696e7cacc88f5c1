"""The memory that training takes: predicted from the configuration alone, and measured.

    python -m benchmarks.bench_budget [--only NAME,..]

Predicted: the training loop's second step, when AdamW has its moments, on tensors without data,
while torch counts which of them exist at once; nothing of the model's size is allocated. Measured:
the same with data in a fresh process, the most that torch's allocator had handed out at a time.
`taken` is what the process took from the machine for that: on a CPU its resident memory, which
holds what malloc keeps for later, on CUDA the reserved memory. `1.7b` is predicted only: its
float32 weights, gradients and moments alone take 27 GB. Features of 16 frames of 325 x 384 tokens,
latents of 256 px, one fine pass, no text (what captions take on top: bench_text).

Last line: one JSON object with predicted_gib_, measured_gib_, taken_gib_ and ratio_NAME (measured /
predicted).
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench_step import make_batch, make_model, make_params
from fvlm.clips.batch import Batch
from fvlm.core.device import default_device, keep_freed_memory
from fvlm.model.foveated import FoveatedModel
from fvlm.training.blocks import recompute_blocks
from fvlm.training.loop import Losses, train_step
from fvlm.training.optim import TrainParams, make_optimizer


@dataclass(frozen=True)
class Setting:
    """A model and how it is trained; `measured`: small enough for 24 GB."""

    llm: str = "135M"
    blocks: int = 30
    clips: int = 4
    gradient_checkpointing: str = "none"
    dtype: str = "float32"
    measured: bool = True


SETTINGS = {
    "135m": Setting(),
    "135m_recomputed": Setting(gradient_checkpointing="all"),
    "135m_batch_8": Setting(clips=8),
    "1.7b_6_blocks": Setting("1.7B", blocks=6),
    "1.7b": Setting("1.7B", blocks=24, measured=False),
    "1.7b_batch_32_bfloat16": Setting("1.7B", 24, 32, dtype="bfloat16", measured=False),
}
PARTS = {"PARAM": "weights", "GRAD": "gradients", "OPT": "moments", "ACT": "activations"}


@dataclass(frozen=True)
class Trainer:
    """The training loop's step, with all that it needs."""

    params: TrainParams
    model: FoveatedModel
    losses: Losses
    optimizer: torch.optim.Optimizer
    batch: Batch

    def step(self, number: int) -> None:
        batches = iter([self.batch])
        train_step(self.losses, self.optimizer, batches, self.params, step=number, late=True)


def make_trainer(setting: Setting, device: torch.device) -> Trainer:
    changes: Any = {"gradient_checkpointing": setting.gradient_checkpointing}
    params = make_params(setting.clips, dtype=setting.dtype, **changes)
    with device:
        model = make_model(setting.blocks, llm=setting.llm).train()
    recompute_blocks(model, params.gradient_checkpointing)
    losses, optimizer = Losses(model, params), make_optimizer(model, params)
    return Trainer(params, model, losses, optimizer, make_batch(setting.clips, device))


def predict(setting: Setting) -> dict[str, float]:
    """GiB at the moment at which most is in use, by part; their sum is `total`."""
    tracker = MemTracker()
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer = make_trainer(setting, torch.device("cpu"))
        trainer.step(0)
        tracker.track_external(trainer.model, trainer.optimizer)
        with tracker:
            trainer.step(1)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    found = {str(kind).split(".")[-1]: size / 2**30 for kind, size in peak.items()}
    parts = {name: found.pop(kind) for kind, name in PARTS.items()}
    return parts | {"rest": found["Total"] - sum(parts.values()), "total": found["Total"]}


def measure(setting: Setting) -> tuple[float, float]:
    """GiB that torch had handed out at most, and that this process took for it."""
    keep_freed_memory()
    device = default_device()
    if device.type == "cuda":
        trainer = make_trainer(setting, device)
        trainer.step(0)
        trainer.step(1)
        return torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30
    before = resident("VmRSS")
    trainer = make_trainer(setting, device)
    trainer.step(0)
    held = [*trainer.model.parameters(), *trainer.batch.tensors()]
    held += [value for state in trainer.optimizer.state.values() for value in state.values()]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        trainer.step(1)
    now = most = sum(value.nbytes for value in held)
    events = [
        event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()  # negative where it is freed
        most = max(most, now)
    return most / 2**30, resident("VmHWM") - before


def resident(what: str) -> float:
    """GiB of this process now (VmRSS) or at most (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) / 2**20


def run_apart(name: str) -> tuple[float, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_budget", "--alone", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    measured, taken = done.stdout.splitlines()[-1].split()
    return float(measured), float(taken)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SETTINGS), help="names, with commas between")
    parser.add_argument("--alone", choices=SETTINGS, help="measure this one in this process")
    options = parser.parse_args()
    if options.alone:
        print(*measure(SETTINGS[options.alone]))
        return
    columns = (
        *PARTS.values(),
        "rest",
        "predicted, GiB",
        "measured",
        "taken",
        "measured / predicted",
    )
    print("|", " | ".join(("training", *columns)), "|")
    print("|---" + "|---:" * len(columns) + "|", flush=True)
    result = {}
    for name in options.only.split(","):
        setting = SETTINGS[name]
        found = predict(setting)
        cells = [f"{size:.2f}" for size in found.values()]
        result[f"predicted_gib_{name}"] = found["total"]
        if setting.measured:
            measured, taken = run_apart(name)
            ratio = measured / found["total"]
            for figure, value in (
                ("measured_gib", measured),
                ("taken_gib", taken),
                ("ratio", ratio),
            ):
                result[f"{figure}_{name}"] = value
                cells.append(f"{value:.2f}")
        print("|", " | ".join((name, *cells)), "|", flush=True)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()
