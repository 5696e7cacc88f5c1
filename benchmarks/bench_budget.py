"""The memory that training takes: predicted from the configuration alone, and measured.

    python -m benchmarks.bench_budget [--only NAME,..]

Predicted: two steps of the real training loop on tensors without data, while torch counts which of
them exist at once; nothing of the model's size is allocated. Measured: the same two steps with data
in a fresh process, by how much its resident memory (on CUDA: what torch allocated) grows at most.
`1.7b` is predicted only: its float32 weights, gradients and moments alone take 27 GB. Features of
16 frames of 325 x 384 tokens, latents of 256 px, one fine pass, no text (what captions take on top:
bench_text).

Last line: one JSON object with predicted_gib_, measured_gib_ and ratio_NAME (measured / predicted).
"""

import argparse
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks.bench_step import make_batch, make_model, make_params
from fvlm.core.device import default_device, keep_freed_memory
from fvlm.training.blocks import recompute_blocks
from fvlm.training.loop import Losses, train_step
from fvlm.training.optim import make_optimizer

STEPS = 2  # the first one makes AdamW's moments


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


def train(setting: Setting, device: torch.device, tracker: MemTracker | None = None) -> None:
    """Two steps of the training loop; `tracker` watches the tensors."""
    changes: Any = {"gradient_checkpointing": setting.gradient_checkpointing}
    params = make_params(setting.clips, dtype=setting.dtype, **changes)
    with device:
        model = make_model(setting.blocks, llm=setting.llm).train()
    recompute_blocks(model, params.gradient_checkpointing)
    losses, optimizer = Losses(model, params), make_optimizer(model, params)
    batch = make_batch(setting.clips, device)

    if tracker:
        tracker.track_external(model, optimizer)
    with tracker or nullcontext():
        for number in range(STEPS):
            train_step(losses, optimizer, iter([batch]), params, step=number, late=True)
            if tracker:
                tracker.reset_mod_stats()  # of modules; what is in use at most stays


def predict(setting: Setting) -> dict[str, float]:
    """GiB at the moment at which most is in use, by part; their sum is `total`."""
    tracker = MemTracker()
    with FakeTensorMode(allow_non_fake_inputs=True):
        train(setting, torch.device("cpu"), tracker)
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    found = {str(kind).split(".")[-1]: size / 2**30 for kind, size in peak.items()}
    parts = {name: found.pop(kind) for kind, name in PARTS.items()}
    return parts | {"rest": found["Total"] - sum(parts.values()), "total": found["Total"]}


def measure(setting: Setting) -> float:
    """GiB by which the memory of this process grows at most."""
    keep_freed_memory()
    device = default_device()
    if device.type == "cuda":
        train(setting, device)
        return torch.cuda.max_memory_allocated() / 2**30
    before = resident("VmRSS")
    train(setting, device)
    return resident("VmHWM") - before


def resident(what: str) -> float:
    """GiB of this process now (VmRSS) or at most (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) / 2**20


def run_apart(name: str) -> float:
    """Measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_budget", "--alone", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SETTINGS), help="names, with commas between")
    parser.add_argument("--alone", choices=SETTINGS, help="measure this one in this process")
    options = parser.parse_args()
    if options.alone:
        print(measure(SETTINGS[options.alone]))
        return
    columns = (*PARTS.values(), "rest", "predicted, GiB", "measured", "measured / predicted")
    print("|", " | ".join(("training", *columns)), "|")
    print("|---" + "|---:" * len(columns) + "|", flush=True)
    result = {}
    for name in options.only.split(","):
        setting = SETTINGS[name]
        found = predict(setting)
        cells = [f"{size:.2f}" for size in found.values()]
        result[f"predicted_gib_{name}"] = found["total"]
        if setting.measured:
            grown = run_apart(name)
            result |= {f"measured_gib_{name}": grown, f"ratio_{name}": grown / found["total"]}
            cells += [f"{grown:.2f}", f"{grown / found['total']:.2f}"]
        print("|", " | ".join((name, *cells)), "|", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
