"""A training step at real sizes, against the way it was done before, and against the machine.

    python -m benchmarks.bench_step [--batch 4] [--rounds 3] [--layers 30]

SmolLM2-135M (random weights of its shape), 16 frames of 325 x 384 tokens, latents of 256 px, one
fine pass. The reference, benchmarks/reference_step.py, computes the same losses in the plain way;
they must agree. The sides take turns; every figure is the median over the rounds.

    ratio_features            reference time / this project's time
    fraction_of_machine_rate  (matmul FLOPs / matmul rate + conv FLOPs / conv rate) / step time; the
                              rates are those of one large product and convolution in that round
    ratio_with_loader         step rate with shards read from disk / rate with a resident batch

On CUDA it also prints a table of batch sizes, eager and compiled. Last line: one JSON object.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaModel

from benchmarks.reference_step import ReferenceModel, reference_step
from fvlm.compute import default_device
from fvlm.models.foveated import FoveatedModel
from fvlm.models.query_attention import ShallowAttention
from fvlm.shards.read import ShardReader, open_shards
from fvlm.shards.write import write_shard
from fvlm.training.loop import Losses, train_step
from fvlm.training.objective import Batch
from fvlm.training.optim import TrainParams, make_optimizer
from fvlm.training.order import random_frames, rows_at
from fvlm.training.prefetch import prefetched

T, STORED, N, D, LATENT, VOCABULARY = 16, 24, 325, 384, (4, 32, 32), 49152
CLIPS = 12  # on disk


def make_model(layers: int) -> FoveatedModel:
    """The foveated model with SmolLM2-135M's shape, shallow queries, one fine pass."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        rope_theta=100_000.0,
    )
    language = LlamaModel(config)
    language.set_input_embeddings(nn.Identity())
    attention = ShallowAttention(D, temperature=1.0)
    return FoveatedModel(
        language=language, attention=attention, latent_shape=LATENT, fine_iterations=1
    )


def make_params(batch: int, **changes: Any) -> TrainParams:
    """Parameters of a step of that many clips."""
    values = {
        "num_frames": T,
        "batch_size": batch,
        "accumulation_steps": 1,
        "max_samples": 10**6,
        "max_hours": 1.0,
        "lr": 1e-5,
        "warmup_samples": 0,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "lambda_coarse": 1.0,
        "dtype": "float32",
        "seed": 0,
        "checkpoint_samples": 1,
        "parallel": "ddp",
    }
    return TrainParams.model_validate(values | changes)


def make_batch(clips: int, device: torch.device) -> Batch:
    """Random tokens and latents as the shards hold them."""
    drawn = torch.Generator().manual_seed(1)
    tokens = torch.randn(clips, T, N, D, generator=drawn).half()
    latents = torch.randn(clips, T, *LATENT, generator=drawn).half()
    return Batch(tokens, latents, [str(n) for n in range(clips)]).to(device)


class Side:
    """This project's training step on any stream of batches."""

    def __init__(self, model: FoveatedModel, params: TrainParams, device: torch.device) -> None:
        model.to(device).train()
        self.losses, self.params = Losses(model, params), params
        self.optimizer = make_optimizer(model, params)

    def step(self, batches: Iterator[Batch]) -> dict[str, float]:
        row, _ = train_step(self.losses, self.optimizer, batches, self.params, step=0)
        return row

    def flops(self, batch: Batch) -> dict[str, int]:
        """Floating-point operations of a step in matrix products and in convolutions."""
        with FlopCounterMode(display=False) as counter:
            self.step(iter([batch]))
        found = {"matmul": 0, "conv": 0}
        for operator, amount in counter.get_flop_counts()["Global"].items():
            found["conv" if "conv" in str(operator) else "matmul"] += amount
        return found


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of one call, to the end of what it queued on a GPU."""
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def machine_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of one large matrix product and of one large 3x3 convolution, the best of three."""
    size, frames = (8192, 512) if device.type == "cuda" else (2048, 32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(frames, 256, 32, 32, device=device, dtype=dtype)
    w = torch.randn(128, 256, 3, 3, device=device, dtype=dtype)
    x, w = (value.contiguous(memory_format=torch.channels_last) for value in (x, w))
    work = {
        "matmul": (2 * size**3, lambda: a @ b),
        "conv": (2 * frames * 1024 * 9 * 256 * 128, lambda: F.conv2d(x, w, padding=1)),
    }
    with torch.no_grad():
        return {
            name: flops / min(seconds(run, device) for _ in range(4))
            for name, (flops, run) in work.items()
        }


def write_clips(folder: Path) -> ShardReader:
    """Shards of random tokens and latents of real size."""
    rng = np.random.default_rng(0)

    def fields(number: int) -> dict[str, Any]:
        tokens = rng.standard_normal((STORED, N, D), np.float32).astype(np.float16)
        latents = rng.standard_normal((STORED, *LATENT), np.float32).astype(np.float16)
        return {"tokens.npy": tokens, "latents.npy": latents, "json": {"number": number}}

    name = "train-000000.tar"
    facts = write_shard(folder / name, ((f"{n:06d}", fields(n)) for n in range(CLIPS)))
    shards = [{"name": name, "split": "train", **vars(facts)}]
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    return open_shards(folder, split="train")


def load_batch(reader: ShardReader, positions: range) -> Batch:
    """What the train stage reads for these positions."""
    rows = rows_at(positions, clips=len(reader), seed=0)
    frames = random_frames(positions, stored=STORED, count=T, seed=0)
    arrays = reader.read(rows, fields=("tokens", "latents"), frames=frames)
    tokens, latents = (torch.from_numpy(arrays[name]) for name in ("tokens", "latents"))
    return Batch(tokens, latents, [reader.keys[row] for row in rows])


def measure(batch_size: int, rounds: int, layers: int) -> dict[str, float]:
    """All sides in turns, float32 on the CPU and bfloat16 on a GPU."""
    device = default_device()
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    batch, params = make_batch(batch_size, device), make_params(batch_size, dtype=dtype)
    ours = Side(make_model(layers), params, device)
    reference = ReferenceModel(make_model(layers), VOCABULARY).to(device)
    plain = torch.optim.AdamW(
        reference.parameters(), lr=params.lr, weight_decay=params.weight_decay, foreach=False
    )

    def reference_once() -> dict[str, float]:
        return reference_step(
            reference, plain, batch.tokens, batch.latents, clip_norm=params.clip_norm
        )

    flops = ours.flops(batch)
    reference_once()
    tolerance = 2e-2 if dtype == "bfloat16" else 1e-4
    for _ in range(2):  # also warms up
        row, expected = ours.step(itertools.repeat(batch)), reference_once()
        for name, value in expected.items():
            assert abs(row[name] / value - 1) < tolerance, (name, row[name], value)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        reader = write_clips(Path(folder))
        positions = (range(n * batch_size, (n + 1) * batch_size) for n in itertools.count())
        with prefetched(lambda p: load_batch(reader, p), positions, device) as loaded:
            next(loaded)
            for number in range(rounds):
                times = {
                    "reference": seconds(reference_once, device),
                    "step": seconds(lambda: ours.step(itertools.repeat(batch)), device),
                    "loaded": seconds(lambda: ours.step(loaded), device),
                }
                rates = machine_rates(device, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
                ideal = sum(flops[name] / rates[name] for name in flops)
                row = {
                    "ratio_features": times["reference"] / times["step"],
                    "fraction_of_machine_rate": ideal / times["step"],
                    "ratio_with_loader": times["step"] / times["loaded"],
                    "seconds_reference": times["reference"],
                    "seconds_step": times["step"],
                    "matmul_gflops_per_second": rates["matmul"] / 1e9,
                    "conv_gflops_per_second": rates["conv"] / 1e9,
                }
                print(number, *(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
                for name, value in row.items():
                    found.setdefault(name, []).append(value)
    result = {name: statistics.median(values) for name, values in found.items()}
    return result | {f"gflops_{name}": amount / 1e9 for name, amount in flops.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=30)
    arguments = parser.parse_args()
    result = measure(arguments.batch, arguments.rounds, arguments.layers)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()
