"""A training step at real sizes, against the way it was done before, and against the machine.

    python -m benchmarks.bench_step [--batch 4] [--frames-batch 1] [--rounds 3] [--layers 30]
                                     [--dtype float32] [--profile]

SmolLM2-135M (random weights of its shape), one fine pass, latents of 256 px. Features: 16 frames of
325 x 384 tokens. Frames: 8 frames of 256 px through a trained DINOv2 ViT-S/14. The reference,
benchmarks/reference_step.py, computes the same losses in the plain way; they must agree. The sides
take turns; every figure is the median over the rounds. The reference computes in float32; --dtype
is this project's, bfloat16 on a GPU where it is not given.

    ratio_features            reference time / this project's time, from tokens
    ratio_frames              the same from frames
    limit_features            what ratio_features would be if all of this project's FLOPs ran at the
    limit_frames              machine's rate; likewise from frames
    fraction_of_machine_rate  (matmul FLOPs / matmul rate + conv FLOPs / conv rate) / step time; the
                              rates are those of one large product and convolution in that round
    ratio_with_loader         step rate with shards read from disk / rate with a resident batch

With --profile it prints instead where the CPU time of this project's step goes.
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
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaModel

from benchmarks.reference_step import ReferenceModel, reference_step
from benchmarks.step_profile import Seconds, label, labelled, print_profile, profile_step
from fvlm.clips.batch import Batch
from fvlm.clips.order import rows_at, trained_frames
from fvlm.core.device import default_device, keep_freed_memory, peak_memory_gib
from fvlm.core.params import PARAMS, read_yaml
from fvlm.encoders.dino import DinoEncoder
from fvlm.model.captions import Text
from fvlm.model.foveated import FoveatedModel
from fvlm.model.language import fuse_norms
from fvlm.model.query_attention import PooledTokens, ShallowAttention
from fvlm.shards.manifest import Manifest, ShardEntry, write_manifest
from fvlm.shards.read import ShardReader, open_shards
from fvlm.shards.write import write_shard
from fvlm.training.blocks import compile_parts
from fvlm.training.loop import Losses, train_step
from fvlm.training.optim import TrainParams, make_optimizer
from fvlm.training.prefetch import prefetched

T, STORED, N, D, LATENT, VOCABULARY = 16, 24, 325, 384, (4, 32, 32), 49152
SMOLLM2: dict[str, dict[str, Any]] = {
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "1.7B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
CLIPS = 12  # on disk
PAIRS = 3  # steps with a resident batch and with the loader, in turns


def make_model(
    layers: int,
    *,
    frames: bool = False,
    iterations: int = 1,
    latent: tuple[int, int, int] = LATENT,
    text: Text = "none",
    llm: str = "135M",
    pooled: int = 0,
) -> FoveatedModel:
    """The foveated model with the shape of a SmolLM2 and shallow queries, or pooled tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, **SMOLLM2[llm])
    language = fuse_norms(LlamaModel(config))
    if text == "none":
        language.set_input_embeddings(nn.Identity())
    model = FoveatedModel(
        language=language,
        attention=PooledTokens(D, pooled) if pooled else ShallowAttention(D, temperature=1.0),
        latent_shape=latent,
        fine_iterations=iterations,
        encoder=make_encoder() if frames else None,
        text=text,
    )
    if frames:
        model.train_encoder()
    return model


def make_encoder() -> DinoEncoder:
    """DINOv2 ViT-S/14 with random weights."""
    config = Dinov2Config(hidden_size=D, num_hidden_layers=12, num_attention_heads=6, patch_size=14)
    return DinoEncoder(Dinov2Model(config))


def make_params(batch: int, **changes: Any) -> TrainParams:
    """The default parameters for steps of that many clips."""
    sizes = {"num_frames": T, "batch_size": batch, "warmup_samples": 0, "lr": 1e-5}
    return TrainParams.model_validate(read_yaml(PARAMS)["train"] | sizes | changes)


def make_batch(clips: int, device: torch.device, *, frames: bool = False) -> Batch:
    """Random tokens or frames, and latents, as the shards hold them."""
    drawn = torch.Generator().manual_seed(1)
    if frames:
        shape = (clips, T // 2, 3, 256, 256)
        inputs = torch.randint(256, shape, generator=drawn, dtype=torch.uint8)
    else:
        inputs = torch.randn(clips, T, N, D, generator=drawn).half()
    latents = torch.randn(clips, inputs.shape[1], *LATENT, generator=drawn).half()
    return Batch(inputs, latents, [str(n) for n in range(clips)]).to(device)


def count_flops(run: Callable[[], object]) -> dict[str, int]:
    """Floating-point operations of a call in matrix products and in convolutions."""
    with FlopCounterMode(display=False) as counter:
        counter.flop_registry |= attention_formulas()
        run()
    found = {"matmul": 0, "conv": 0}
    for operator, amount in counter.get_flop_counts()["Global"].items():
        found["conv" if "conv" in str(operator) else "matmul"] += amount
    return found


def attention_formulas() -> dict[Any, Callable[..., int]]:
    """How attention is counted: also the CPU's, and also where several queries share a key."""
    formulas = {}
    for end, query in (("", 0), ("_backward", 1)):
        known = flop_registry[getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention{end}")]

        def count(*given: Any, known: Any = known, query: int = query, **options: Any) -> int:
            shapes = [value.shape if isinstance(value, Tensor) else value for value in given]
            heads = shapes[query][1]
            for n in (query + 1, query + 2):
                shapes[n] = torch.Size((shapes[n][0], heads, *shapes[n][2:]))
            return int(known(*shapes, **options))

        for kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention",
                     "cudnn_attention"):  # fmt: skip
            formulas[getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{end}")] = count
    return formulas


class Side:
    """This project's training step on one batch, or on any stream of batches."""

    def __init__(self, batch: Batch, device: torch.device, layers: int, dtype: str) -> None:
        self.batch, self.device, self.dtype = batch, device, dtype
        self.frames = batch.inputs.dtype == torch.uint8
        raw = {"input": "frames", "encoder_lr": 1e-5, "token_noise": 0.0}
        changes: dict[str, Any] = raw if self.frames else {}
        self.params = make_params(len(batch.keys), dtype=dtype, **changes)
        self.model = make_model(layers, frames=self.frames).to(device).train()
        self.losses = Losses(self.model, self.params)
        self.optimizer = make_optimizer(self.model, self.params)

    def step(self, batches: Iterator[Batch] | None = None) -> dict[str, float]:
        stream = batches or iter([self.batch])
        return train_step(self.losses, self.optimizer, stream, self.params, step=0).read()[0]

    def flops(self) -> dict[str, int]:
        """Floating-point operations of a step in matrix products and in convolutions."""
        return count_flops(self.step)


class Reference:
    """The reference's training step on the same model and batch."""

    def __init__(self, side: Side) -> None:
        self.batch, self.params = side.batch, side.params
        self.model = ReferenceModel(side.model, VOCABULARY).to(side.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.params.lr,
            weight_decay=self.params.weight_decay,
            foreach=False,
        )

    def step(self) -> dict[str, float]:
        inputs, latents = self.batch.inputs, self.batch.latents
        norm = self.params.max_grad_norm
        return reference_step(self.model, self.optimizer, inputs, latents, max_grad_norm=norm)


def warm_up_and_compare(side: Side, reference: Reference) -> None:
    """Two steps of each; their losses must agree."""
    tolerance = 2e-2 if side.dtype == "bfloat16" else 1e-4
    for _ in range(2):
        row = side.step()
        for name, expected in reference.step().items():
            assert abs(row[name] / expected - 1) < tolerance, (name, row[name], expected)


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
    known = facts.model_dump(exclude={"md5"})
    entry = ShardEntry(name=name, split="train", fingerprint="", **known)
    write_manifest(folder, Manifest(stage="encode", made_by="", recipe={}, shards=[entry]))
    return open_shards(folder, split="train")


def load_batch(reader: ShardReader, positions: range) -> Batch:
    """What the train stage reads for these positions."""
    rows = rows_at(positions, clips=len(reader), seed=0)
    frames = trained_frames(positions, stored=STORED, count=T, seed=0, choice="random")
    arrays = reader.read(rows, fields=("tokens", "latents"), frames=frames)
    tokens, latents = (torch.from_numpy(arrays[name]) for name in ("tokens", "latents"))
    return Batch(tokens, latents, [reader.keys[row] for row in rows])


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """All sides in turns."""
    device, size, layers = default_device(), arguments.batch, arguments.layers
    features = Side(make_batch(size, device), device, layers, arguments.dtype)
    pictures = make_batch(arguments.frames_batch, device, frames=True)
    frames = Side(pictures, device, layers, arguments.dtype)
    references = Reference(features), Reference(frames)
    for side, reference in zip((features, frames), references, strict=True):
        warm_up_and_compare(side, reference)
    flops = {"features": features.flops(), "frames": frames.flops()}
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        reader = write_clips(Path(folder))
        positions = (range(n * size, (n + 1) * size) for n in itertools.count())
        with prefetched(lambda p: load_batch(reader, p), positions, device) as loaded:
            for number in range(arguments.rounds):
                row = measure_once(features, frames, references, loaded, flops)
                print(number, *(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
                for name, value in row.items():
                    found.setdefault(name, []).append(value)
    result = {name: statistics.median(values) for name, values in found.items()}
    counted = flops["features"].items()
    return result | {f"gflops_{name}": amount / 1e9 for name, amount in counted}


def measure_once(
    features: Side,
    frames: Side,
    references: tuple[Reference, Reference],
    loaded: Iterator[Batch],
    flops: dict[str, dict[str, int]],
) -> dict[str, float]:
    """One turn of every side."""
    device = features.device
    reference = seconds(references[0].step, device)
    pairs = [
        (seconds(features.step, device), seconds(lambda: features.step(loaded), device))
        for _ in range(PAIRS)
    ]
    resident, with_loader = (statistics.mean(times) for times in zip(*pairs, strict=True))
    reference_frames = seconds(references[1].step, device)
    step_frames = seconds(frames.step, device)
    rates = machine_rates(device, getattr(torch, features.dtype))
    limits = {
        side: sum(amount / rates[name] for name, amount in found.items())
        for side, found in flops.items()
    }
    return {
        "ratio_features": reference / resident,
        "ratio_frames": reference_frames / step_frames,
        "limit_features": reference / limits["features"],
        "limit_frames": reference_frames / limits["frames"],
        "fraction_of_machine_rate": limits["features"] / resident,
        "ratio_with_loader": resident / with_loader,
        "seconds_reference": reference,
        "seconds_step": resident,
        "seconds_reference_frames": reference_frames,
        "seconds_step_frames": step_frames,
        "matmul_gflops_per_second": rates["matmul"] / 1e9,
        "conv_gflops_per_second": rates["conv"] / 1e9,
    }


def profile_sides(arguments: argparse.Namespace) -> dict[str, Seconds]:
    """Features with the loader and frames without: seconds by part."""
    device, size, layers = default_device(), arguments.batch, arguments.layers
    found: dict[str, Seconds] = {}
    with tempfile.TemporaryDirectory() as folder:
        reader = write_clips(Path(folder))
        positions = (range(n * size, (n + 1) * size) for n in itertools.count())
        with prefetched(lambda p: load_batch(reader, p), positions, device) as loaded:
            side = Side(make_batch(size, device), device, layers, arguments.dtype)
            label(side.model)
            side.step(loaded)
            stream = labelled(loaded)
            found["features"] = profile_step(lambda: side.step(stream), steps=arguments.rounds)
    pictures = make_batch(arguments.frames_batch, device, frames=True)
    side = Side(pictures, device, layers, arguments.dtype)
    label(side.model)
    side.step()
    found["frames"] = profile_step(side.step, steps=arguments.rounds)
    for title, seconds in found.items():
        print_profile(title, seconds)
    return found


def gpu_table(layers: int) -> None:
    """Samples a second, share of the machine's rate and peak memory by batch size."""
    device = default_device()
    print("batch  compiled  samples/s  of matmul rate  GiB")
    for compiled, size in itertools.product((False, True), (8, 16, 32, 48, 64, 80)):
        side = Side(make_batch(size, device), device, layers, "bfloat16")
        flops = sum(side.flops().values())
        if compiled:
            compile_parts(side.model, "default")
        for _ in range(3):
            side.step()
        torch.cuda.reset_peak_memory_stats(device)
        took = statistics.median(seconds(side.step, device) for _ in range(10))
        share = flops / took / machine_rates(device, torch.bfloat16)["matmul"]
        memory = peak_memory_gib(device)
        print(f"{size:5} {compiled!s:>9} {size / took:10.0f} {share:15.2f} {memory:4.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("batch", 4), ("frames-batch", 1), ("rounds", 3), ("layers", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    default_dtype = "bfloat16" if default_device().type == "cuda" else "float32"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=default_dtype)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the stage does; the plain way gains from it, too
    if arguments.profile:
        print(json.dumps(profile_sides(arguments)))
        return
    result = measure(arguments)
    if default_device().type == "cuda":
        gpu_table(arguments.layers)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()
