"""First contact with a GPU: is everything right there, and how fast is it?

    make gpu-check   or   PYTHONPATH=. python3 -m benchmarks.gpu_check [--minutes 7] [--only A,B]

Needs a checkout, torch 2.11 or newer and what `make gpu-wheels` gathers; neither .venv nor network.
All weights are random, of real sizes. Without CUDA everything is tiny, and the training step is
compiled by a backend that makes no kernels, to try the script. Phases run in turn; one that fails
does not stop the next, and one that the time left does not allow is skipped, and said. After every
phase the results stand in gpu_check.json, in $OUT or build/.

Right: the GPU against the CPU, compiled against eager, DDP and FSDP2 with one process, and a
training that was stopped and resumed. Fast: a training step of SmolLM2-135M on 16 frames of 325
tokens with two fine passes in bfloat16, eager, compiled, and with forward and backward as one CUDA
graph; encoding with the architecture of SD's autoencoder at 256 px; uncertainty passes.
"""

import argparse
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch._C._autograd import DeviceType

from benchmarks import bench_step as bench
from benchmarks.gpu_right import (
    BACKEND,
    CUDA,
    DEVICE,
    LATENT,
    Found,
    Training,
    compare_encoders,
    compare_inference,
    compare_models,
    compare_processes,
    compare_training,
    compare_uncertainty,
    make_encoder,
    make_sampler,
)
from fvlm.clips.batch import Batch
from fvlm.core.device import peak_memory_gib, reset_peak_memory
from fvlm.training.blocks import compile_parts, recompute_blocks

PEAK = 989e12  # FLOP/s in bfloat16 that NVIDIA names for H100 and H200
BATCH, BATCHES = (64, (128, 8, 256, 32, 16, 80)) if CUDA else (2, (1,))
T, N, BLOCKS = (16, 325, 30) if CUDA else (4, 26, 2)
STEPS = 10 if CUDA else 1


def seconds(run: Callable[[], object], *, warm: int = 3) -> float:
    """Wall time of one of STEPS calls, to the end of all that they queued."""
    for _ in range(warm):
        run()
    synchronize()
    begin = time.perf_counter()
    for _ in range(STEPS):
        run()
    synchronize()
    return (time.perf_counter() - begin) / STEPS


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def make_training(clips: int, **changes: Any) -> Training:
    """At the sizes of the preset features-rtx4090."""
    params = bench.make_params(clips, dtype="bfloat16", num_frames=T, **changes)
    model = bench.make_model(BLOCKS, iterations=2, latent=LATENT)
    compile_parts(model, params.compile, backend=BACKEND)
    recompute_blocks(model, params.gradient_checkpointing)
    options: Any = {"generator": torch.Generator(DEVICE).manual_seed(1), "device": DEVICE}
    inputs = torch.randn(clips, T, N, 384, dtype=torch.float16, **options)
    latents = torch.randn(clips, T, *LATENT, dtype=torch.float16, **options)
    return Training(model, Batch(inputs, latents, [str(n) for n in range(clips)]), params)


def measure_step(clips: int, **changes: Any) -> Found:
    """Samples a second, share of the peak, memory, time of the first step, and the loss."""
    torch._dynamo.reset()
    if CUDA:
        torch.cuda.empty_cache()
    reset_peak_memory(DEVICE)
    training, begin = make_training(clips, **changes), time.perf_counter()
    loss = training.step().read()[0]["loss"]
    found = {"first_step_seconds": time.perf_counter() - begin, "loss": loss}
    try:
        return found | rate(clips, seconds(training))
    finally:
        del training


def rate(clips: int, took: float) -> Found:
    flops = RESULT["flops_per_sample"]
    return {
        "samples_per_second": clips / took,
        "mfu": clips * sum(flops.values()) / took / PEAK,
        "peak_gib": peak_memory_gib(DEVICE),
    }


def measure_machine() -> Found:
    """What is here, the rates of one large product and convolution, and FLOPs of a sample."""
    rates = bench.machine_rates(DEVICE, torch.bfloat16) if CUDA else {"matmul": 1.0, "conv": 1.0}
    counted = bench.count_flops(lambda: make_training(2).step())
    RESULT["flops_per_sample"] = {name: amount / 2 for name, amount in counted.items()}
    return {
        "device": torch.cuda.get_device_name() if CUDA else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tflops_per_second": {name: value / 1e12 for name, value in rates.items()},
    }


def measure_graph(mode: str) -> Callable[[], Found]:
    """Forward and backward as one CUDA graph; clipping and the optimizer stay outside of it."""

    def run() -> Found:
        if not CUDA:
            return {"skipped": "no CUDA"}
        torch._dynamo.reset()
        reset_peak_memory(DEVICE)
        training = make_training(BATCH, compile=mode)
        params, stream = list(training.model.parameters()), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                training.losses(training.batch)["loss"].backward()
        torch.cuda.current_stream().wait_stream(stream)
        training.model.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = training.losses(training.batch)["loss"]
            loss.backward()

        def step() -> None:
            graph.replay()  # gradients are overwritten, not added to
            nn.utils.clip_grad_norm_(params, 1.0)
            training.optimizer.step()

        found = {"replay_ms": seconds(graph.replay) * 1e3, "loss": float(loss)}
        return found | rate(BATCH, seconds(step))

    return run


def measure_batches(mode: str, batches: tuple[int, ...]) -> Callable[[], Found]:
    def run() -> Found:
        found: Found = {}
        for clips in batches:
            if left() < 30:
                found[str(clips)] = "skipped: no time left"
                continue
            try:
                found[str(clips)] = measure_step(clips, compile=mode)
            except torch.OutOfMemoryError as error:
                found[str(clips)] = str(error)[:100]
            print(" ", mode, clips, brief(found[str(clips)]), flush=True)
        return found

    return run


def measure_variant(**changes: Any) -> Callable[[], Found]:
    return lambda: measure_step(BATCH, **changes)


def measure_benchmark() -> Found:
    """The same compiled step when cuDNN searches for the fastest convolutions."""
    torch.backends.cudnn.benchmark = True
    try:
        return measure_step(BATCH, compile="default")
    finally:
        torch.backends.cudnn.benchmark = False


def profile_kernels() -> Found:
    """Kernels of one eager step: how many, how long the GPU works, and on what."""
    training = make_training(BATCH)
    for _ in range(3):
        training()
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CUDA if CUDA else kinds.CPU]) as made:
        training()
        synchronize()
    rows = made.key_averages()
    kind = DeviceType.CUDA if CUDA else DeviceType.CPU

    def busy(row: Any) -> float:
        return float(row.self_device_time_total if CUDA else row.self_cpu_time_total) / 1e3

    kernels = [row for row in rows if row.device_type == kind]
    top = sorted(kernels, key=busy, reverse=True)[:20]
    return {
        "kernels": sum(row.count for row in kernels),
        "busy_ms": sum(map(busy, kernels)),
        "top": [[row.key[:90], row.count, round(busy(row), 2)] for row in top],
    }


def measure_encode(frames: int, *, compile: bool = False) -> Callable[[], Found]:
    """Clips of 24 frames a second through both encoders, and milliseconds of each alone."""

    def run() -> Found:
        if compile and not CUDA:
            return {"skipped": "no CUDA"}
        reset_peak_memory(DEVICE)
        size, count = (256, 16) if CUDA else (56, 2)
        widths = (128, 256, 512, 512) if CUDA else (8, 8, 8, 8)
        blocks = 12 if CUDA else 1
        options: Any = {"blocks": blocks, "widths": widths, "frames": frames, "compile": compile}
        encoder = make_encoder(DEVICE, "bfloat16", **options)
        clips = np.random.default_rng(0).integers(0, 256, (count, 24, 3, size, size), np.uint8)
        together = encoder.batch_clips(24)
        groups = [clips[n : n + together] for n in range(0, count, together)]
        begin = time.perf_counter()
        with encoder.ahead() as ahead:
            list(ahead.map(encoder.encode, groups[:1]))
            first = time.perf_counter() - begin
            times = []
            for _ in range(3):
                begin = time.perf_counter()
                list(ahead.map(encoder.encode, groups))
                times.append(time.perf_counter() - begin)
        batch = torch.from_numpy(groups[0]).flatten(0, 1).to(DEVICE)
        with torch.inference_mode(), torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            dino = seconds(lambda: encoder.dino(batch, layer=blocks), warm=1)
        with torch.inference_mode():
            vae = seconds(lambda: encoder.vae(batch), warm=1)
        return {
            "clips_per_second": count / statistics.median(times),
            "first_seconds": first,
            "vae_ms_per_clip": vae * 1e3 / len(groups[0]),
            "dino_ms_per_clip": dino * 1e3 / len(groups[0]),
            "peak_gib": peak_memory_gib(DEVICE),
        }

    return run


def measure_uncertainty() -> Found:
    """Passes a second by passes in one forward, and minutes for 320,000."""
    frames = torch.randint(0, 256, (4, 3, 224 if CUDA else 42, 224 if CUDA else 42))
    frames, passes = frames.to(torch.uint8), 64 if CUDA else 4
    found: Found = {}
    for dtype in ("float32", "bfloat16"):
        for batch in (16, 64, 256, 1024) if CUDA else (4, 16):
            sampler = make_sampler(DEVICE, batch, dtype, passes=passes)
            together = max(1, min(4, batch // passes))
            groups = [frames[n : n + together] for n in range(0, 4, together)]

            def run() -> None:
                for group in groups:  # noqa: B023
                    names = [str(number) for number in range(len(group))]
                    sampler.scores(group, names, trials=2)  # noqa: B023

            took = seconds(run, warm=1)
            each = 4 * 2 * passes / took
            found[f"{dtype} {batch}"] = {
                "passes_per_second": each,
                "minutes_of_320000": 320_000 / each / 60,
            }
    return found


PHASES: tuple[tuple[str, float, Callable[[], Found]], ...] = (  # and the seconds to be left for it
    ("machine", 0, measure_machine),
    ("models", 60, compare_models),
    ("eager", 20, measure_batches("none", (BATCH,))),
    ("compiled", 30, measure_batches("default", (BATCH,))),
    ("graph", 20, measure_graph("none")),
    ("graph compiled", 30, measure_graph("default")),
    ("inference", 10, compare_inference),
    ("training", 20, compare_training),
    ("encoders", 20, compare_encoders),
    ("uncertainty", 20, compare_uncertainty),
    ("processes", 20, compare_processes),
    ("profile", 20, profile_kernels),
    ("encode 48", 20, measure_encode(48)),
    ("encode 192", 20, measure_encode(192)),
    ("uncertainty rate", 20, measure_uncertainty),
    ("eager batches", 30, measure_batches("none", BATCHES)),
    ("compiled batches", 40, measure_batches("default", BATCHES[:3])),
    ("recomputed", 30, measure_variant(gradient_checkpointing="all")),
    ("cudnn.benchmark", 40, measure_benchmark),
    ("reduce-overhead", 50, measure_variant(compile="reduce-overhead")),
    ("more compiled batches", 40, measure_batches("default", BATCHES[3:])),
    ("encode compiled", 90, measure_encode(48, compile=True)),
)
RESULT: Found = {}
STARTED = time.monotonic()
OPTIONS = argparse.Namespace(minutes=7.0)


def left() -> float:
    """Seconds; without a GPU there is no hurry."""
    return OPTIONS.minutes * 60 - (time.monotonic() - STARTED) if CUDA else float("inf")


def fine(result: object) -> bool:
    """Is everything in it that has a verdict right, and did nothing end with an error?"""
    if not isinstance(result, dict):
        return True
    return (
        bool(result.get("ok", True)) and "error" not in result and all(map(fine, result.values()))
    )


def brief(result: object) -> object:
    """For the screen: numbers of three digits, without long lists."""
    if isinstance(result, dict):
        return {name: brief(value) for name, value in result.items() if name != "top"}
    if isinstance(result, list):
        return [brief(value) for value in result]
    return float(f"{result:.3g}") if isinstance(result, float) else result


@contextmanager
def guarded(name: str, path: Path) -> Iterator[None]:
    """An error is a result too; the file is written whatever happens."""
    begin = time.monotonic()
    try:
        yield
    except Exception:
        RESULT[name] = {"error": traceback.format_exc()[-1500:]}
    RESULT[name]["seconds"] = round(time.monotonic() - begin, 1)
    path.write_text(json.dumps(RESULT, indent=1))
    print(name, json.dumps(brief(RESULT[name])), flush=True)
    if CUDA:
        torch.cuda.empty_cache()


def print_table() -> None:
    """The rows that belong into benchmarks/README.md."""
    print("\n| training step | samples/s | MFU | GiB | first step, s |\n|---|---:|---:|---:|---:|")
    for name, found in RESULT.items():
        rows = {"": found} | found if isinstance(found, dict) else {}
        for key, row in rows.items():
            if isinstance(row, dict) and "samples_per_second" in row:
                first = row.get("first_step_seconds", float("nan"))
                print(
                    f"| {name} {key} | {row['samples_per_second']:.0f} | {row['mfu']:.2f} "
                    f"| {row['peak_gib']:.1f} | {first:.1f} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=7.0, help="after which the rest is skipped"
    )
    parser.add_argument("--only", default="", help="names of phases, with commas between them")
    parser.parse_args(namespace=OPTIONS)
    path = Path(os.environ.get("OUT", "build")) / "gpu_check.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = ["machine", *OPTIONS.only.split(",")] if OPTIONS.only else None
    for name, needs, run in PHASES:
        if wanted and name not in wanted:
            continue
        if left() < needs:
            RESULT[name] = {"skipped": f"{left():.0f} s left, {needs:.0f} needed"}
            print(name, RESULT[name]["skipped"], flush=True)
            continue
        with guarded(name, path):
            RESULT[name] = run()
    print_table()
    wrong = [name for name, found in RESULT.items() if not fine(found)]
    RESULT["wrong"] = wrong
    path.write_text(json.dumps(RESULT, indent=1))
    print(f"{path}: {'everything is right' if not wrong else 'WRONG: ' + ', '.join(wrong)}")


if __name__ == "__main__":
    main()
