"""The modes of a training step: recomputed, fused loss, compiled, larger batches, bfloat16.

    python -m benchmarks.bench_modes [--only NAME,..] [--steps 10]

SmolLM2-135M's shape with random weights, one fine pass, captions predicted. Each mode runs in a
fresh process: 3 steps to warm up, then `--steps` measured ones. Without CUDA it is small: 2 blocks,
4 frames of 26 tokens, a quarter of the clips, float32; with CUDA whole, 16 frames of 325 tokens,
bfloat16. `plain` makes all logits of the captions at once, the other way is torch's fused loss.

Last line: one JSON object with, for every mode, samples_per_second_, peak_gib_, first_step_seconds_
and loss_difference_NAME: relative to the first mode, same weights and clips, one forward.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.bench_step import make_model, make_params
from fvlm.clips.batch import Batch, Captions
from fvlm.core.device import default_device, keep_freed_memory, peak_memory_gib
from fvlm.model import captions
from fvlm.training.blocks import compile_parts, recompute_blocks
from fvlm.training.loop import Losses, train_step
from fvlm.training.optim import make_optimizer

WORDS, COMPARED = 32, 2  # tokens of a caption; clips of the forward whose losses are compared


@dataclass(frozen=True)
class Mode:
    """`clips` on a GPU; `dtype` None: float32 on a CPU, bfloat16 on a GPU."""

    clips: int = 8
    gradient_checkpointing: str = "none"
    compile: str = "none"
    plain: bool = True
    dtype: str | None = None


MODES = {
    "recomputed": Mode(gradient_checkpointing="all"),
    "kept": Mode(),
    "fused_loss": Mode(plain=False),
    "compiled": Mode(compile="default"),
    "max_autotune": Mode(compile="max-autotune"),
    "batch_16": Mode(clips=16),
    "batch_32": Mode(clips=32),
    "combined_16": Mode(clips=16, compile="default", plain=False),
    "combined_32": Mode(clips=32, compile="default", plain=False),
    "bfloat16": Mode(dtype="bfloat16"),
    "combined_32_bfloat16": Mode(clips=32, compile="default", plain=False, dtype="bfloat16"),
}


def make_batch(clips: int, device: torch.device) -> Batch:
    """The first clips are the same for every number of clips."""
    T, N, latent = (16, 325, (4, 32, 32)) if device.type == "cuda" else (4, 26, (4, 16, 16))
    drawn = [torch.Generator().manual_seed(n) for n in range(clips)]
    inputs = torch.stack([torch.randn(T, N, 384, generator=source) for source in drawn]).half()
    latents = torch.stack([torch.randn(T, *latent, generator=source) for source in drawn]).half()
    ids = torch.stack([torch.randint(49152, (WORDS,), generator=source) for source in drawn])
    words = Captions(ids, torch.ones_like(ids, dtype=torch.bool))
    return Batch(inputs, latents, [str(n) for n in range(clips)], words).to(device)


def run(mode: Mode, steps: int) -> dict[str, float]:
    """Measured in this process."""
    keep_freed_memory()
    device = default_device()
    cuda = device.type == "cuda"
    captions.FUSED &= not mode.plain
    clips = mode.clips if cuda else mode.clips // 4
    dtype = mode.dtype or ("bfloat16" if cuda else "float32")
    changes: Any = {"gradient_checkpointing": mode.gradient_checkpointing, "compile": mode.compile}
    params = make_params(clips, dtype=dtype, **changes)
    latent = (4, 32, 32) if cuda else (4, 16, 16)
    model = make_model(30 if cuda else 2, latent=latent, text="caption").to(device).train()
    compile_parts(model, params.compile)
    recompute_blocks(model, params.gradient_checkpointing)
    losses, optimizer = Losses(model, params), make_optimizer(model, params)
    batch, times = make_batch(clips, device), []
    for number in range(4 + steps):
        begin = time.perf_counter()
        train_step(losses, optimizer, iter([batch]), params, step=number).read()
        times.append(time.perf_counter() - begin)
    return {
        "samples_per_second": clips * steps / sum(times[4:]),
        "peak_gib": peak_memory_gib(device),
        "first_step_seconds": times[0],
        "loss": first_loss(mode, dtype, device),
    }


def first_loss(mode: Mode, dtype: str, device: torch.device) -> float:
    """Of fresh weights and the same clips for every mode."""
    latent = (4, 32, 32) if device.type == "cuda" else (4, 16, 16)
    params = make_params(COMPARED, dtype=dtype)
    model = make_model(30 if device.type == "cuda" else 2, latent=latent, text="caption")
    model.to(device).train()
    compile_parts(model, make_params(1, compile=mode.compile).compile)
    return float(Losses(model, params)(make_batch(COMPARED, device))["loss"].detach())


def run_apart(name: str, steps: int) -> dict[str, float]:
    """Measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_modes", "--alone", name]
    done = subprocess.run([*command, "--steps", str(steps)], check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default=",".join(MODES), help="modes, with commas between them")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--alone", choices=MODES, help="measure this one in this process")
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(run(MODES[options.alone], options.steps)))
        return
    result: dict[str, float] = {}
    reference = None
    print("| mode | samples/s | peak GiB | first step, s | loss, relative |")
    print("|---|---:|---:|---:|---:|")
    for name in options.only.split(","):
        found = run_apart(name, options.steps)
        loss = found.pop("loss")
        reference = loss if reference is None else reference
        found["loss_difference"] = loss / reference - 1
        result |= {f"{figure}_{name}": value for figure, value in found.items()}
        rate, peak, first, difference = found.values()
        print(f"| {name} | {rate:.2f} | {peak:.2f} | {first:.1f} | {difference:.1e} |", flush=True)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()
