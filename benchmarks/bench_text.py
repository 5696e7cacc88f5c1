"""Caption cross-entropy: memory and time of the fused form against the plain one, forward and back.

    python -m benchmarks.bench_text

Each side runs in a fresh process, whose largest resident memory is compared with that of the same
process stopped before the loss. Sizes of SmolLM2-135M: 4,096 supervised tokens, width 576, 49,152
words, float32. Needs about 4 GiB of memory for the plain form.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from fvlm.model.captions import token_losses

TOKENS, WIDTH, WORDS = 4096, 576, 49152
RUNS = 3


def plain_losses(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same with all logits at once."""
    return F.cross_entropy(states @ weight.T, targets, reduction="none")


def measure(side: str) -> None:
    """In a process of its own: print largest memory above the start (bytes), seconds, and loss."""
    torch.manual_seed(0)
    states = torch.randn(TOKENS, WIDTH, requires_grad=True)
    weight = torch.randn(WORDS, WIDTH).mul_(0.05).requires_grad_()
    targets = torch.randint(WORDS, (TOKENS,))
    # Needed either way; the extra memory is what lies between. Ones, as zeros are not yet resident.
    states.grad, weight.grad = torch.ones_like(states), torch.ones_like(weight)
    form = {"fused": token_losses, "plain": plain_losses}[side]
    # Libraries load on first use. With a small weight: buffers of the real size would hide others.
    small = torch.randn(8, WIDTH, requires_grad=True)
    form(small, small, torch.arange(8)).mean().backward()
    before = peak_bytes()
    started = time.perf_counter()
    loss = form(states, weight, targets).mean()
    loss.backward()
    seconds = time.perf_counter() - started
    print(json.dumps({"bytes": peak_bytes() - before, "seconds": seconds, "loss": loss.item()}))


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Both sides in turn, and their medians."""
    found: dict[str, list[dict[str, float]]] = {"fused": [], "plain": []}
    for _ in range(RUNS):
        for side, runs in found.items():
            command = [sys.executable, "-m", "benchmarks.bench_text", side]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout))
    middle = {
        side: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for side, runs in found.items()
    }
    for side, figures in middle.items():
        print(
            f"{side:6} extra peak {figures['bytes'] / 1e6:7.0f} MB   "
            f"{figures['seconds']:6.2f} s   loss {figures['loss']:.6f}"
        )
    print(
        json.dumps(
            {
                "tokens": TOKENS,
                "extra_memory_ratio": middle["fused"]["bytes"] / middle["plain"]["bytes"],
                "time_ratio": middle["fused"]["seconds"] / middle["plain"]["seconds"],
                "loss_difference": abs(middle["fused"]["loss"] - middle["plain"]["loss"]),
            }
        )
    )


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
