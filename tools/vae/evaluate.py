"""Measure a VAE's reconstructions on a folder of videos.

    python -m tools.vae.evaluate --videos FOLDER --sheet docs/vae_reconstructions.webp

Eight frames a clip, evenly spaced; centre square crop; area-averaged to each size; encoded to the
posterior mean and decoded. Without `--videos` the folder is `$FVLM_TEST_CORPUS/natural`. Prints a
Markdown table of PSNR in dB (peak 255, mean over a clip's frames) and, as the last line, one JSON
object with the means over clips. The sheet shows eight clips at even steps of this ranking, from
the lowest PSNR to the highest, each by the frame nearest to the clip's mean.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw, ImageFont

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mpg", ".mov"}
FRAMES_PER_CLIP = 8
SHEET_CLIPS = 8


def clip_frames(path: Path, sizes: list[int]) -> dict[int, np.ndarray]:
    """Eight frames of a clip at each size: size -> uint8 (8, size, size, 3)."""
    with av.open(str(path)) as container:
        total = sum(1 for packet in container.demux(video=0) if packet.size)
    wanted = set(np.linspace(0, total - 1, FRAMES_PER_CLIP + 2)[1:-1].round().astype(int).tolist())
    crops: dict[int, list[np.ndarray]] = {size: [] for size in sizes}
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                image = frame.to_image()
                for size in sizes:
                    crops[size].append(centre_square(image, size))
    return {size: np.stack(frames) for size, frames in crops.items()}


def centre_square(image: Image.Image, size: int) -> np.ndarray:
    """The largest centred square, area-averaged: uint8 (size, size, 3)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX, box=box))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, frames: np.ndarray) -> np.ndarray:
    """Decode the posterior mean of uint8 (B, H, W, 3) frames, to the same shape and type."""
    batch = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    restored = vae.decode(vae.encode(batch).latent_dist.mean).sample
    restored = restored.clamp(-1, 1).add(1).mul(127.5).round().byte()
    pixels: np.ndarray = restored.permute(0, 2, 3, 1).numpy()
    return pixels


def psnr_db(frames: np.ndarray, restored: np.ndarray) -> float:
    """Peak signal-to-noise ratio of each frame against 255, averaged over the frames."""
    return float(psnr_by_frame(frames, restored).mean())


def psnr_by_frame(frames: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each frame of (B, H, W, 3) against 255, in dB."""
    error = (frames.astype(np.float64) - restored) ** 2
    decibels: np.ndarray = 10 * np.log10(255**2 / np.maximum(error.mean((1, 2, 3)), 1e-6))
    return decibels


@dataclass(frozen=True)
class Example:
    """A clip on the sheet: a frame as it was and as decoded, (H, W, 3) each; PSNR of the clip."""

    name: str
    original: np.ndarray
    restored: np.ndarray
    psnr_db: float


def typical_frame(name: str, frames: np.ndarray, restored: np.ndarray) -> Example:
    """The frame of a clip whose PSNR is nearest to the mean of all."""
    by_frame = psnr_by_frame(frames, restored)
    nearest = int(np.abs(by_frame - by_frame.mean()).argmin())
    return Example(name, frames[nearest], restored[nearest], float(by_frame.mean()))


def across_ranking(examples: list[Example], count: int) -> list[Example]:
    """`count` clips at even steps from the lowest PSNR to the highest, or all."""
    ranked = sorted(examples, key=lambda example: example.psnr_db)
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round()
    return [ranked[int(place)] for place in places]


@torch.no_grad()
def milliseconds(vae: AutoencoderKL, size: int) -> tuple[float, float]:
    """Median time to encode and to decode one frame on one core."""
    torch.set_num_threads(1)
    frame = torch.zeros(1, 3, size, size)
    latent = torch.zeros(1, vae.config.latent_channels, size // 8, size // 8)
    medians = []
    for call, argument in ((vae.encode, frame), (vae.decode, latent)):
        seconds = []
        for _ in range(12):
            began = time.perf_counter()
            call(argument)
            seconds.append(time.perf_counter() - began)
        medians.append(1000 * float(np.median(seconds[2:])))
    return medians[0], medians[1]


def draw_sheet(examples: list[Example], total: int, path: Path) -> None:
    """Originals above what was decoded, one column a clip of `total`, with its mean PSNR; WebP."""
    side, gap, label = 192, 8, 64
    font = ImageFont.load_default(size=15)
    width = gap + len(examples) * (side + gap)
    sheet = Image.new("RGB", (width, label + 2 * side + 3 * gap), "white")
    draw = ImageDraw.Draw(sheet)
    title = f"{len(examples)} of {total} clips at even steps from the lowest to the highest PSNR"
    draw.text((gap, 2), f"{title}; below each frame: decoded", fill="black", font=font)
    for column, example in enumerate(examples):
        x = gap + column * (side + gap)
        draw.text((x, 24), example.name, fill="black", font=font)
        draw.text((x, 42), f"{example.psnr_db:.1f} dB, mean of its frames", fill="black", font=font)
        for row, frame in enumerate((example.original, example.restored)):
            picture = Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(picture, (x, label + row * (side + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="WEBP", quality=90, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=Path, help="folder; default $FVLM_TEST_CORPUS/natural")
    parser.add_argument("--vae", type=Path, default=Path("assets/vae"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="in px")
    parser.add_argument("--sheet", type=Path, help="write a WebP of reconstructions here")
    options = parser.parse_args()
    videos = options.videos or Path(os.environ["FVLM_TEST_CORPUS"]) / "natural"
    vae = AutoencoderKL.from_pretrained(options.vae).eval()
    encode_ms, decode_ms = milliseconds(vae, options.sizes[0])
    scores: dict[int, list[float]] = {size: [] for size in options.sizes}
    examples = list[Example]()
    print("| clip |" + "".join(f" PSNR at {size} px |" for size in options.sizes))
    print("|---|" + "---:|" * len(options.sizes))
    for path in sorted(p for p in videos.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES):
        for size, frames in clip_frames(path, options.sizes).items():
            restored = reconstruct(vae, frames)
            scores[size].append(psnr_db(frames, restored))
            if size == options.sizes[0]:
                examples.append(typical_frame(path.stem, frames, restored))
        print(f"| {path.stem} |" + "".join(f" {scores[s][-1]:.2f} |" for s in options.sizes))
    means = {size: float(np.mean(values)) for size, values in scores.items()}
    print("| **mean** |" + "".join(f" **{value:.2f}** |" for value in means.values()))
    if options.sheet:
        draw_sheet(across_ranking(examples, SHEET_CLIPS), len(examples), options.sheet)
    figures = {f"psnr_{size}_db": round(value, 2) for size, value in means.items()}
    figures |= {"encode_ms": round(encode_ms, 1), "decode_ms": round(decode_ms, 1)}
    print(json.dumps(figures | {"clips": len(scores[options.sizes[0]])}))


if __name__ == "__main__":
    main()
