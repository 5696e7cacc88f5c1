"""Encoding frames: the stage's encoder against a loop over frames, dinotool, and the matmul rate.

    python -m benchmarks.bench_encode [--clips 2] [--size 128] [--rounds 3] [--dinotool FOLDER]

All ways get the same random frames (values do not change the work), 24 a clip, and the weights of
params.yaml. They take turns; in its turn each encodes all clips once, wall time:

    encoder         this project: `encode.batch_frames` together, a batch a core, to float16 arrays
    per_frame_loop  stock transformers and diffusers models, one frame at a time, torch's threads
    dino_final      this project's DINO alone, final tokens, for the comparison with dinotool
    dinotool        its transform and extractor around the same weights, as large batches
    dino, vae       each encoder of this project alone, as the stage calls it
    matmul          products of square float32 matrices, 2048 x 2048, a core each

FLOPs are counted by torch.utils.flop_counter. `dino_fraction_of_matmul` is the FLOP rate of DINO as
a share of that of `matmul`. `limit_per_frame_loop` is what `ratio_per_frame_loop` would be if the
encoder did all of its FLOPs at the rate of `matmul`: on a CPU a loop over frames is bounded by
arithmetic, not by launches, so that batching alone cannot gain more.

With CUDA also `clips_per_second_cuda` (and `_cuda_compiled`): DINO and the autoencoder architecture
of stabilityai/sd-vae-ft-mse with random weights, 24 frames at 256 px, bfloat16, batches of 48.

Rates are medians over the rounds. Last line: one JSON object; a ratio above 1 means that this
project is faster. dinotool is null when it is not installed (benchmarks/README.md says how).
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fvlm.core.device import Dtype
from fvlm.core.params import Params, load_params
from fvlm.core.prefetch import Ahead
from fvlm.encoders.dino import DinoEncoder
from fvlm.encoders.frames import EncodeParams, FrameEncoder, load_encoder
from fvlm.encoders.vae import VaeCodec
from fvlm.weights.loading import load_pretrained, quiet
from fvlm.weights.resolve import resolve

NUM_FRAMES, MATRIX = 24, 2048
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SD_VAE: dict[str, Any] = {  # config.json of stabilityai/sd-vae-ft-mse
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 256,
}
Clips = NDArray[np.uint8]
Way = Callable[[], object]


class Sections(Params):
    """What is read of params.yaml."""

    encode: EncodeParams


def with_stage(encoder: FrameEncoder, ahead: Ahead, clips: Clips) -> Way:
    """As pipeline/encode.py does it, without files."""
    step = encoder.batch_clips(NUM_FRAMES)
    groups = [clips[start : start + step] for start in range(0, len(clips), step)]
    return lambda: list(ahead.map(encoder.encode, groups))


def with_model(ahead: Ahead, model: Callable[[Tensor], Tensor], frames: list[Tensor]) -> Way:
    """One encoder alone over batches of frames."""

    @torch.inference_mode()
    def encode(batch: Tensor) -> Tensor:
        return model(batch).to(torch.float16)

    return lambda: list(ahead.map(encode, frames))


def with_loop(params: EncodeParams, clips: Clips) -> Way:
    """What one writes first: stock models, a frame at a time, the wanted hidden state taken out."""
    dino, vae = stock_dino(params), AutoencoderKL.from_pretrained(folder(params.vae, "vae")).eval()

    @torch.no_grad()
    def run() -> list[tuple[Any, Any]]:
        made = []
        for frame in torch.from_numpy(clips).flatten(0, 1):
            pixels = frame[None].float() / 255
            normal = (pixels - MEAN[:, None, None]) / STD[:, None, None]
            states = dino(pixel_values=normal, output_hidden_states=True).hidden_states
            latents = vae.encode(pixels * 2 - 1).latent_dist.mean * vae.config.scaling_factor
            made.append((states[params.layer].half().numpy(), latents.half().numpy()))
        return made

    return run


def with_dinotool(params: EncodeParams, clips: Clips, batch: int) -> Way | None:
    """Its transform of every frame, then its extractor; None when it is not installed."""
    if importlib.util.find_spec("dinotool") is None:
        print("dinotool is not installed: see benchmarks/README.md")
        return None
    # torchvision from the package index needs CUDA's libraries to know its own operators; without
    # them its import fails at the names it looks up. Nothing here uses these operators.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with suppress(RuntimeError):  # already known: a torchvision that fits
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from dinotool.data import TransformFactory
    from dinotool.model import DinoV3FeatureExtractor
    from PIL import Image

    model = stock_dino(params)
    model.config.num_register_tokens = getattr(model.config, "num_register_tokens", 0)
    model.patch_size = model.config.patch_size
    extract = DinoV3FeatureExtractor(model, device="cpu")
    transform = TransformFactory("dino", model.patch_size).get_transform(clips.shape[-2:])
    frames = clips.reshape(-1, *clips.shape[2:]).transpose(0, 2, 3, 1)

    def run() -> list[Tensor]:
        pictures = [Image.fromarray(frame) for frame in frames]
        tensors = [transform.transform(picture) for picture in pictures]
        parts = [tensors[start : start + batch] for start in range(0, len(tensors), batch)]
        return [extract(torch.stack(part)).tensor for part in parts]

    return run


def with_matmul(ahead: Ahead, products: int) -> Way:
    left, right = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    return lambda: list(ahead.map(lambda _: left @ right, range(products)))


def folder(source: str, kind: Any) -> Any:
    return resolve(source, kind=kind).folder


def stock_dino(params: EncodeParams) -> Any:
    from transformers import AutoModel

    return load_pretrained(AutoModel, resolve(params.dino, kind="dino"), kind="dino")


def count_flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    return int(counter.get_total_flops())


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
                print(f"round {number} {name}: {seconds[name][-1]:.2f} s", flush=True)
    return seconds


def on_cpu(params: EncodeParams, clips: Clips, rounds: int) -> dict[str, float | None]:
    """All ways in turn, and the figures that they give."""
    encoder, _ = load_encoder(params, torch.device("cpu"))
    dino, vae, layer = encoder.dino, encoder.vae, params.layer
    batches = list(torch.from_numpy(clips).flatten(0, 1).split(params.batch_frames))
    one = batches[0][:1]
    frames = clips.shape[0] * clips.shape[1]
    flops = {
        "dino": count_flops(lambda: dino(one, layer=layer)) * frames,
        "vae": count_flops(lambda: vae(one)) * frames,
    }
    with encoder.ahead() as ahead:
        products = max(1, round(flops["dino"] / (2 * MATRIX**3) / ahead.workers)) * ahead.workers
        flops["matmul"] = 2 * MATRIX**3 * products
        inside: dict[str, Way] = {
            "encoder": with_stage(encoder, ahead, clips),
            "dino": with_model(ahead, lambda batch: dino(batch, layer=layer), batches),
            "vae": with_model(ahead, vae, batches),
            "dino_final": with_model(ahead, lambda x: dino(x, layer=dino.blocks), batches),
            "matmul": with_matmul(ahead, products),
        }
        others = {
            "per_frame_loop": with_loop(params, clips),
            "dinotool": with_dinotool(params, clips, params.batch_frames),
        }
        cores = ahead.workers
        ways = inside | {n: with_threads(way, cores) for n, way in others.items() if way}
        seconds = measure(ways, rounds)
    return figures(seconds, flops, len(clips))


def with_threads(way: Way, threads: int) -> Way:
    """The other ways split every operation over the cores, torch's default."""

    def run() -> object:
        torch.set_num_threads(threads)
        try:
            return way()
        finally:
            torch.set_num_threads(1)

    return run


def figures(
    seconds: dict[str, list[float]], flops: dict[str, int], clips: int
) -> dict[str, float | None]:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rate = {name: flops[name] / median[name] for name in flops}
    limit = (flops["dino"] + flops["vae"]) / rate["matmul"]
    tool = median.get("dinotool")
    found: dict[str, float | None] = {
        "ratio_per_frame_loop": median["per_frame_loop"] / median["encoder"],
        "limit_per_frame_loop": median["per_frame_loop"] / limit,
        "ratio_dinotool": tool / median["dino_final"] if tool else None,
        "dino_fraction_of_matmul": rate["dino"] / rate["matmul"],
        "vae_fraction_of_matmul": rate["vae"] / rate["matmul"],
        "encoder_fraction_of_matmul": limit / median["encoder"],
        "clips_per_second": clips / median["encoder"],
        "matmul_gflops": rate["matmul"] / 1e9,
    }
    for name, values in seconds.items():
        found[f"spread_{name}"] = (max(values) - min(values)) / median[name]
    return found


def on_cuda(params: EncodeParams, rounds: int) -> dict[str, float | None]:
    """Clips a second of the whole encoder at 256 px, as a GPU is meant to be used."""
    if not torch.cuda.is_available():
        return {"clips_per_second_cuda": None, "clips_per_second_cuda_compiled": None}
    clips = np.random.default_rng(0).integers(0, 256, (32, NUM_FRAMES, 3, 256, 256), np.uint8)
    return {
        f"clips_per_second_cuda{word}": cuda_rate(params, clips, rounds, compiled)
        for word, compiled in (("", False), ("_compiled", True))
    }


def cuda_rate(params: EncodeParams, clips: Clips, rounds: int, compiled: bool) -> float:
    dtype: Dtype = "bfloat16"
    changes = {"batch_frames": 48, "dtype": dtype, "compile": compiled}
    with quiet():
        vae = VaeCodec(AutoencoderKL(**SD_VAE).to(memory_format=torch.channels_last)).eval()
    dino = DinoEncoder(stock_dino(params)).eval()
    encoder = FrameEncoder(dino, vae, params.model_copy(update=changes), torch.device("cuda"))
    with encoder.ahead() as ahead:
        (seconds,) = measure({"cuda": with_stage(encoder, ahead, clips)}, rounds).values()
    return len(clips) / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=2, help="of 24 frames")
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dinotool", help="folder that it was installed into with --target")
    parser.add_argument("--batch-frames", type=int, help="default: encode.batch_frames")
    options = parser.parse_args()
    if options.dinotool:
        sys.path.append(options.dinotool)
    params = load_params(Sections).encode
    if options.batch_frames:
        params = params.model_copy(update={"batch_frames": options.batch_frames})
    shape = (options.clips, NUM_FRAMES, 3, options.size, options.size)
    clips = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = on_cpu(params, clips, options.rounds) | on_cuda(params, options.rounds)
    for name, value in found.items():
        print(f"{name:32} {'not available' if value is None else format(value, '.2f')}")
    rounded = {name: None if value is None else round(value, 3) for name, value in found.items()}
    print(json.dumps(rounded | {"cores": torch.get_num_threads(), "size": options.size}))


if __name__ == "__main__":
    main()
