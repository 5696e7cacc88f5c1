"""Scores of frames over trials x passes, with the deterministic part computed once a frame.

Frames go one group after the other, each through all trials: what lies before the first site is
shared by all of its passes. Finished groups are kept on disk, and a killed run goes on behind them.

Axes: N frames in all, F frames of a group, t passes of one forward, K trials, S snapshots.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from safetensors.numpy import load, save
from torch import Tensor

from fvlm.core.device import HalfDtype, autocast
from fvlm.core.errors import FvlmError
from fvlm.core.io import atomic_write
from fvlm.core.params import Params
from fvlm.core.prefetch import Ahead, one_core_each
from fvlm.core.progress import Progress
from fvlm.uncertainty.masks import Row, drop, kept_levels, row_keys
from fvlm.uncertainty.moments import VARIANTS, Moments
from fvlm.uncertainty.tower import State, Tower

Scores = NDArray[np.float64]
SAVE_SECONDS = 10.0  # the work that a kill can cost
# Passes in one forward that fill a device; ViT-S gains nothing from more (benchmarks/README.md).
FILLING = {"cpu": 16, "cuda": 256, "mps": 256}


class TowerParams(Params):
    """One of `uncertainty.towers`; batch_size: passes in one forward."""

    model: str
    sites: list[str] = Field(min_length=1)
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)]


class UncertaintyParams(Params):
    """Section `uncertainty` of params.yaml."""

    towers: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], TowerParams] = Field(min_length=1)
    p: float = Field(gt=0, lt=1)
    passes: int = Field(ge=2)
    snapshots: list[int]
    trials: int = Field(ge=2)
    max_clips: int = Field(ge=1)
    frames_per_clip: int = Field(ge=1)
    # bfloat16 adds its rounding to weak scores: up to 2.8x with a single projection
    dtype: HalfDtype
    compile: bool
    blur_sigma: float = Field(gt=0)
    downsample: int = Field(ge=2)
    bootstrap_samples: int = Field(ge=1)
    seed: int

    @field_validator("p")
    @classmethod
    def _check_p(cls, p: float) -> float:
        kept_levels(p)
        return p

    @model_validator(mode="after")
    def _check_snapshots(self) -> "UncertaintyParams":
        counts = [1, *self.snapshots, self.passes]
        if any(first >= second for first, second in pairwise(counts)):
            raise ValueError(
                f"snapshots must ascend from 2 on and stay below passes ({self.passes}), "
                f"got {self.snapshots}"
            )
        return self

    @property
    def counts(self) -> list[int]:
        """Numbers of passes after which scores are taken; the last is all of them."""
        return [*self.snapshots, self.passes]


@dataclass(frozen=True)
class Sampler:
    """A tower and how it is sampled: these sites drop with probability p, in this seed's way.

    batch_size: passes in one forward. Of `params` the towers are not looked at.
    """

    tower: Tower
    sites: tuple[str, ...]
    params: UncertaintyParams
    device: torch.device
    batch_size: int

    def __post_init__(self) -> None:
        self.tower.to(self.device)
        if self.params.compile:
            self.tower.compile_steps(self.sites)

    def ahead(self) -> AbstractContextManager[Ahead]:
        """Threads for `scores`, as many as the device can use; what compiles does so in one."""
        whole = self.device.type != "cpu" or self.params.compile
        return Ahead(workers=1) if whole else one_core_each()

    @torch.inference_mode()
    def scores(self, frames: Tensor, samples: Sequence[str], *, trials: int) -> Scores:
        """Scores float64 [2,S,K,F] (pre and post) of frames uint8 [F,3,S,S] named by `samples`.

        They depend on each frame and its name only, up to the rounding of matrix products.
        """
        frames = frames.to(self.device)
        with autocast(self.device, self.params.dtype):
            state = self.tower.prefix(frames, self.sites)
            reference = self.tower.suffix(state, lambda _, value: value).float()
            moments = [self._trial(state, reference, samples, trial) for trial in range(trials)]
        return np.stack(moments, axis=2)

    def _trial(self, state: State, reference: Tensor, samples: Sequence[str], trial: int) -> Scores:
        """[2,S,F]."""
        moments, snapshots = Moments(reference), []
        for passes in split_passes(self.params.counts, self.batch_size // len(samples)):
            rows = [Row(trial, number, sample) for sample in samples for number in passes]
            embeddings = self.embed(state, rows).float()
            moments.add(embeddings.unflatten(0, (len(samples), len(passes))))
            if moments.passes in self.params.counts:
                snapshots.append(moments.scores().numpy())
        return np.stack(snapshots, axis=1)

    def embed(self, state: State, rows: Sequence[Row]) -> Tensor:
        """Embeddings [R,D] of these passes; the rows of one frame of `state` [F] follow each other.

        Raises FvlmError unless every site dropped exactly once.
        """
        keys = row_keys(self.params.seed, rows, self.device)
        kept, fired = kept_levels(self.params.p), Counter[str]()

        def apply(name: str, value: Tensor) -> Tensor:
            if name not in self.sites:
                return value
            fired[name] += 1
            return drop(value.float(), keys, name, kept)

        embeddings = self.tower.suffix(repeat(state, len(rows) // len(state.residual)), apply)
        if fired != Counter(self.sites):
            raise FvlmError(f"every site must drop once in a pass, got {dict(fired)}")
        return embeddings


def repeat(state: State, times: int) -> State:
    """The same state for several passes of every frame, in memory of its own."""
    return replace(
        state,
        residual=state.residual.repeat_interleave(times, dim=0),
        outputs=tuple(output.repeat_interleave(times, dim=0) for output in state.outputs),
    )


def split_passes(counts: Sequence[int], together: int) -> Iterator[range]:
    """Passes in runs of at most `together` (at least 1), each ending at or before a snapshot."""
    start = 0
    for end in counts:
        while start < end:
            yield range(start, min(start + max(together, 1), end))
            start = min(start + max(together, 1), end)


def score_frames(
    sampler: Sampler,
    frames: NDArray[np.uint8],
    samples: Sequence[str],
    *,
    trials: int,
    title: str,
    state: Path,
    change: Callable[[Tensor], Tensor] = lambda frames: frames,
) -> Scores:
    """Scores float64 [2,S,K,N] of frames uint8 [N,3,S,S], going on from `state` if it is there.

    change: applied to frames uint8 on the device before the tower sees them.
    """
    params = sampler.params
    shape = (len(VARIANTS), len(params.counts), trials, len(samples))
    scores, done = _load(state, shape)
    together = max(1, sampler.batch_size // params.passes)
    saved = time.monotonic()

    def score(group: slice) -> tuple[slice, Scores]:
        pixels = change(torch.from_numpy(frames[group]).to(sampler.device))
        return group, sampler.scores(pixels, samples[group], trials=trials)

    starts = range(done, len(samples), together)
    groups = (slice(start, min(start + together, len(samples))) for start in starts)
    with (
        sampler.ahead() as ahead,
        Progress(title, total=len(samples), unit="frame", initial=done) as progress,
    ):
        for group, found in ahead.map(score, groups):
            scores[..., group] = found
            done = group.stop
            progress.advance(group.stop - group.start)
            if done == len(samples) or time.monotonic() - saved >= SAVE_SECONDS:
                _save(state, scores, done)
                saved = time.monotonic()
    return scores


def _save(path: Path, scores: Scores, done: int) -> None:
    with atomic_write(path) as file:
        file.write(save({"scores": scores, "done": np.array([done])}))


def _load(path: Path, shape: tuple[int, ...]) -> tuple[Scores, int]:
    """Scores so far and how many frames they hold. `path` is named after all that decides them."""
    if not path.is_file():
        return np.full(shape, np.nan), 0
    stored = load(path.read_bytes())
    if stored["scores"].shape != shape:
        raise FvlmError(f"{path}: expected scores {shape}, got {stored['scores'].shape}; delete it")
    return stored["scores"].copy(), int(stored["done"][0])
