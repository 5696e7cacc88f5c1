"""What tracking costs a training: the time of a log call, and of steps with and without it.

    python -m benchmarks.bench_tracking [--steps 300]

The steps are real work. Blocks of steps with a tracker that is up and sends, and
blocks without one, take turns. Last line: one JSON object.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time

import torch

from fvlm.core.io import project_root
from fvlm.tracking.tracker import Tracker

BLOCK_STEPS = 20


def time_step(
    weights: torch.Tensor, tracker: Tracker | None = None, step: int = 0
) -> tuple[float, float]:
    """Seconds of a step of matrix products with six logged values, and of its log call."""
    begin = time.perf_counter()
    x = weights
    for _ in range(4):
        x = torch.tanh(weights @ x)
    names = ("loss", "loss_coarse", "loss_fine", "lr", "gradient_norm")
    row = {"step": step, "samples": step + 1, **dict.fromkeys(names, float(x.abs().mean()))}
    computed = time.perf_counter()
    if tracker is not None:
        tracker.log(row, memory_gib=1.0)
    end = time.perf_counter()
    return end - begin, end - computed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=640)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # on shared machines, threads that wait for each other are all noise
    torch.manual_seed(0)
    weights = torch.randn(arguments.width, arguments.width) / arguments.width**0.5
    for _ in range(BLOCK_STEPS):
        time_step(weights)
    plain: list[float] = []
    tracked: list[float] = []
    logs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DVC_ROOT"] = folder
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        begin = time.perf_counter()
        tracker = Tracker("bench")
        start_seconds = time.perf_counter() - begin
        starting = []
        while not (project_root() / "mlflow.db").exists():  # mlflow is imported
            starting.append(time_step(weights)[0])
        ready_seconds = time.perf_counter() - begin
        for step in range(arguments.steps):
            with_tracker = step // BLOCK_STEPS % 2 == 0
            seconds, log = time_step(weights, tracker if with_tracker else None, step)
            (tracked if with_tracker else plain).append(seconds)
            if with_tracker:
                logs.append(log)
        begin = time.perf_counter()
        tracker.close(status="FINISHED")
        close_seconds = time.perf_counter() - begin
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "start_ms": start_seconds * 1e3,
        "ready_seconds": ready_seconds,
        "log_us": statistics.median(logs) * 1e6,
        "log_us_p99": statistics.quantiles(logs, n=100)[98] * 1e6,
        "step_ms": statistics.median(plain) * 1e3,
        "step_ms_tracked": statistics.median(tracked) * 1e3,
        "step_ms_while_starting": statistics.mean(starting) * 1e3,
        "slowdown": statistics.median(tracked) / statistics.median(plain) - 1,
        "close_seconds": close_seconds,
        "child_cpu_seconds": child.ru_utime + child.ru_stime,
    }
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
