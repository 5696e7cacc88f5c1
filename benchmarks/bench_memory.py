"""What it is worth that malloc keeps freed memory: a training step and encoding, on the CPU.

    python -m benchmarks.bench_memory [--rounds 3]

Each side runs in fresh processes, in turns: `fvlm.core.device.keep_freed_memory` cannot be undone.
The step: 4 clips of 24 frames at 256 px as in bench_step, 4 blocks of SmolLM2-135M. Encoding: as in
bench_encode, 2 clips of 24 frames at 128 px. Medians over the rounds of each process's best of
three; last line: one JSON object; a ratio above 1 means that keeping it is faster.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.bench_encode import Sections, with_stage
from benchmarks.bench_step import Side, make_batch
from fvlm.core.device import keep_freed_memory
from fvlm.core.params import load_params
from fvlm.encoders.frames import load_encoder

CPU = torch.device("cpu")
NAMES = ("train", "encode")


def best_of_three(run: Callable[[], object]) -> float:
    """Seconds of the fastest of three calls, after one that is not counted."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def run_train() -> float:
    return best_of_three(Side(make_batch(4, CPU), CPU, 4, "float32").step)


def run_encode() -> float:
    encoder, _ = load_encoder(load_params(Sections).encode, CPU)
    clips = np.random.default_rng(0).integers(0, 256, (2, 24, 3, 128, 128), np.uint8)
    with encoder.ahead() as threads:
        return best_of_three(with_stage(encoder, threads, clips))


def run_side(name: str, *, keep: bool) -> None:
    """In a process of its own: print seconds and page faults."""
    run = {"train": run_train, "encode": run_encode}[name]
    if keep:
        keep_freed_memory()
    with patch("fvlm.core.prefetch.keep_freed_memory"):  # the encoder's threads would ask for it
        seconds = run()
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        run_side(chosen.side, keep=chosen.keep)
        return
    found: dict[str, float] = {}
    for name in NAMES:
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for number in range(chosen.rounds):
            for keep in (False, True):
                command = [sys.executable, "-m", "benchmarks.bench_memory", "--side", name]
                done = subprocess.run(command + ["--keep"] * keep, stdout=-1, check=True, text=True)
                taken, faults = json.loads(done.stdout.splitlines()[-1])
                seconds[keep].append(taken)
                print(f"round {number + 1} {name} {keep=}: {taken:.2f} s, {faults} page faults")
        plain, kept = (statistics.median(seconds[keep]) for keep in (False, True))
        found |= {f"ratio_{name}": plain / kept, f"seconds_{name}": kept}
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
