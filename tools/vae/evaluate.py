"""Measure a VAE's reconstructions on a folder of videos.

    python -m tools.vae.evaluate --videos FOLDER --sheet docs/vae_reconstructions.png

Eight frames a clip, evenly spaced; centre square crop; area-averaged to each size; encoded to the
posterior mean and decoded. Without `--videos` the folder is `$FVLM_TEST_CORPUS/natural`. Prints a
Markdown table of PSNR in dB (peak 255, mean over a clip's frames) and, as the last line, one JSON
object with the means over clips.
"""

import argparse
import json
import os
import time
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
    error = (frames.astype(np.float64) - restored) ** 2
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error.mean((1, 2, 3)), 1e-6))))


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


def draw_sheet(rows: list[tuple[str, np.ndarray, np.ndarray, float]], path: Path) -> None:
    """Originals above reconstructions, one column a clip, named and measured; an 8-bit PNG."""
    side, gap, label = 192, 8, 40
    font = ImageFont.load_default(size=15)
    width = gap + len(rows) * (side + gap)
    sheet = Image.new("RGB", (width, label + 2 * side + 3 * gap), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (name, original, restored, value) in enumerate(rows):
        x = gap + column * (side + gap)
        draw.text((x, 2), name, fill="black", font=font)
        draw.text((x, 20), f"below: decoded, {value:.1f} dB", fill="black", font=font)
        for row, frame in enumerate((original, restored)):
            picture = Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(picture, (x, label + row * (side + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=Path, help="folder; default $FVLM_TEST_CORPUS/natural")
    parser.add_argument("--vae", type=Path, default=Path("assets/vae"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="in px")
    parser.add_argument("--sheet", type=Path, help="write a PNG of reconstructions here")
    options = parser.parse_args()
    videos = options.videos or Path(os.environ["FVLM_TEST_CORPUS"]) / "natural"
    vae = AutoencoderKL.from_pretrained(options.vae).eval()
    encode_ms, decode_ms = milliseconds(vae, options.sizes[0])
    scores: dict[int, list[float]] = {size: [] for size in options.sizes}
    examples = []
    print("| clip |" + "".join(f" PSNR at {size} px |" for size in options.sizes))
    print("|---|" + "---:|" * len(options.sizes))
    for path in sorted(p for p in videos.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES):
        for size, frames in clip_frames(path, options.sizes).items():
            restored = reconstruct(vae, frames)
            scores[size].append(psnr_db(frames, restored))
            if size == options.sizes[0]:
                middle = slice(4, 5)
                value = psnr_db(frames[middle], restored[middle])
                examples.append((path.stem, frames[4], restored[4], value))
        print(f"| {path.stem} |" + "".join(f" {scores[s][-1]:.2f} |" for s in options.sizes))
    means = {size: float(np.mean(values)) for size, values in scores.items()}
    print("| **mean** |" + "".join(f" **{value:.2f}** |" for value in means.values()))
    if options.sheet:
        kinds = {row[0].split("_")[0]: row for row in examples}
        examples = list(kinds.values())  # one clip of each series, such as asl_*
        chosen = np.linspace(0, len(examples) - 1, min(SHEET_CLIPS, len(examples))).round()
        draw_sheet([examples[int(i)] for i in chosen], options.sheet)
    figures = {f"psnr_{size}_db": round(value, 2) for size, value in means.items()}
    figures |= {"encode_ms": round(encode_ms, 1), "decode_ms": round(decode_ms, 1)}
    print(json.dumps(figures | {"clips": len(scores[options.sizes[0]])}))


if __name__ == "__main__":
    main()
