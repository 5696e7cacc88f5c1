"""What one steered token costs beside many: training and answering, arm by arm, in one run.

    python -m benchmarks.bench_arms [--rounds 5]

SmolLM2-135M's shape with random weights, 64 patch tokens a frame, a question in front of the video
and an answer behind it. `coarse` and `pooled_P` have one pass, `fine` has two; an answer of the
fine pass takes both. Without CUDA 4 blocks, 8 frames, 4 clips and float32; with CUDA all 30, 16
frames, 32 clips and bfloat16. Arms take turns, round by round; medians of samples/s.

Last line: one JSON object with training_ARM and answering_ARM in samples/s, visual_tokens_ARM of a
clip, and fine_over_pooled_16 of both.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch

from benchmarks.bench_step import VOCABULARY, D, make_model, make_params
from fvlm.clips.batch import Batch, Captions
from fvlm.core.device import default_device, keep_freed_memory
from fvlm.training.loop import Losses, train_step
from fvlm.training.optim import make_optimizer

PATCHES, LATENT = 64, (4, 16, 16)
QUESTION, ANSWER = 16, 4  # tokens; the last one of an answer is its end
POOLED = (1, 4, 16, 49)
ARMS = {"coarse": 0, "fine": 0} | {f"pooled_{count}": count for count in POOLED}
Work = Callable[[], object]


def make_batch(clips: int, frames: int) -> Batch:
    """Random tokens, latents and texts."""
    drawn = torch.Generator().manual_seed(1)

    def words(count: int) -> Captions:
        ids = torch.randint(VOCABULARY, (clips, count), generator=drawn)
        return Captions(ids, torch.ones_like(ids, dtype=torch.bool))

    question, answer = words(QUESTION), words(ANSWER)
    return Batch(
        torch.randn(clips, frames, 1 + PATCHES, D, generator=drawn).half(),
        torch.randn(clips, frames, *LATENT, generator=drawn).half(),
        [str(clip) for clip in range(clips)],
        Captions(answer.ids, answer.mask, question=question),
    )


def work_of(arm: str, device: torch.device) -> tuple[Work, Work, int, int]:
    """A training step and an answer's loss, the clips of each, and a clip's visual tokens."""
    cuda = device.type == "cuda"
    blocks, frames, clips = (30, 16, 32) if cuda else (4, 8, 4)
    params = make_params(clips, dtype="bfloat16" if cuda else "float32", lambda_recon=0.0)
    passes, pooled = int(arm == "fine"), ARMS[arm]
    model = make_model(blocks, iterations=passes, latent=LATENT, text="answer", pooled=pooled)
    model.to(device).train()
    losses, optimizer = Losses(model, params), make_optimizer(model, params)
    batch = make_batch(clips, frames).to(device)

    def train() -> object:
        return train_step(losses, optimizer, iter([batch]), params, step=0).read()

    @torch.inference_mode()
    def answer() -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            cache = model.cache_clips(batch.inputs, batch.captions)
            last = model.run_passes(cache, clips, frames, captions=batch.captions)[-1]
            lost = model.caption_losses(last, batch.captions)
        assert lost is not None
        return lost.tolist()  # waits for a GPU

    return train, answer, clips, frames * model.attention.tokens_per_frame


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    keep_freed_memory()
    arms = {arm: work_of(arm, default_device()) for arm in ARMS}
    rates = defaultdict[str, list[float]](list)
    for number in range(-1, rounds):  # the first warms up
        for arm, (train, answer, clips, _) in arms.items():
            for name, work in (("training", train), ("answering", answer)):
                begin = time.perf_counter()
                work()
                if number >= 0:
                    rates[f"{name}_{arm}"].append(clips / (time.perf_counter() - begin))
    found = {name: statistics.median(values) for name, values in rates.items()}
    print("| arm | visual tokens | training, samples/s | answering, samples/s |")
    print("|---|---:|---:|---:|")
    for arm, (_, _, _, tokens) in arms.items():
        speeds = [f"{found[f'{name}_{arm}']:.3g}" for name in ("training", "answering")]
        print(f"| {arm} | {tokens} | {speeds[0]} | {speeds[1]} |")
        found[f"visual_tokens_{arm}"] = tokens
    for name in ("training", "answering"):
        found[f"{name}_fine_over_pooled_16"] = found[f"{name}_fine"] / found[f"{name}_pooled_16"]
    print(json.dumps({name: float(f"{value:.4g}") for name, value in found.items()}))


if __name__ == "__main__":
    main()
