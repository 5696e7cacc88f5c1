"""From losses [clips,T] by arm to the figures of an evaluation: flat metrics and rows of tables.

Names: `loss_X` mean loss of arm X over all its frames; `ratio_X` coarse / X, as
`coarse_fine_ratio` is coarse / fine (above 1: better than coarse); `X_fine_ratio` X / fine (above
1: the fine pass beats X); `_dynamic` over frames t >= 3, `_early` over frames 1 and 2; `_low`,
`_high` the ends of the 95% interval; `_seed_N` of the model trained with seed N. None: undefined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fvlm.statistics.arms import ClipName, Losses, measured_arms, measured_controls
from fvlm.statistics.ratio import (
    ALL,
    DYNAMIC,
    EARLY,
    Bootstrap,
    mean_loss,
    motion_quartiles,
    named,
)
from fvlm.statistics.verdict import decide, headline

Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """Flat metrics, and rows per clip, per frame index and per motion quartile."""

    metrics: Row
    clips: list[Row]
    frames: list[Row]
    motion: list[Row]


def summarize(
    trained: Mapping[int, Losses], clips: Sequence[ClipName], *, samples: int, seed: int
) -> Summary:
    """All figures of an evaluation; `samples` resamples of the videos for each interval.

    `trained` holds the losses of the same clips by seed of the training: replicates.
    """
    losses, bootstrap = _join(trained, clips, samples, seed)
    return Summary(
        metrics=_metrics(losses, bootstrap, clips=len(clips)) | _seed_figures(trained),
        clips=_clip_rows(losses, clips),
        frames=_frame_rows(losses, bootstrap),
        motion=_motion_rows(losses, bootstrap, clips=len(clips)),
    )


def training_figures(
    trained: Mapping[int, Losses], clips: Sequence[ClipName], *, samples: int, seed: int
) -> Row:
    """The ratio on clips that were trained on, `train_coarse_fine_ratio`: no evidence, an alarm."""
    losses, bootstrap = _join(trained, clips, samples, seed)
    figures: Row = {"train_videos": len(set(bootstrap.video_ids))}
    for suffix, frames in (("", ALL), ("_dynamic", DYNAMIC)):
        estimate = bootstrap.ratio(losses["coarse"], losses["fine"], frames)
        figures |= named(f"train_coarse_fine_ratio{suffix}", estimate)
    return figures


def _join(
    trained: Mapping[int, Losses], clips: Sequence[ClipName], samples: int, seed: int
) -> tuple[Losses, Bootstrap]:
    """Losses [seeds*clips,T], one training after the other, and whose rows they are."""
    losses = {
        arm: np.concatenate([found[arm] for found in trained.values()])
        for arm in next(iter(trained.values()))
    }
    video_ids = [clip.video_id for clip in clips] * len(trained)
    replicates = np.repeat(list(trained), len(clips)).tolist()
    return losses, Bootstrap(video_ids, samples, seed, replicates)


def _seed_figures(trained: Mapping[int, Losses]) -> Row:
    """The ratio of each training, where there are several."""
    figures: Row = {"seeds": len(trained)}
    if len(trained) > 1:
        for seed, losses in trained.items():
            ratio = _plain_figures(losses)["coarse_fine_ratio_dynamic"]
            figures[f"coarse_fine_ratio_dynamic_seed_{seed}"] = ratio
    return figures


def _metrics(losses: Losses, bootstrap: Bootstrap, *, clips: int) -> Row:
    coarse, fine = losses["coarse"], losses["fine"]
    videos = len(set(bootstrap.video_ids))
    overall = bootstrap.ratio(coarse, fine)
    dynamic = bootstrap.ratio(coarse, fine, DYNAMIC)
    early = bootstrap.ratio(coarse, fine, EARLY)
    against = {
        name: bootstrap.ratio(losses[name], fine, DYNAMIC) for name in measured_controls(losses)
    }
    verdict = decide(dynamic, against, early=early, videos=videos)
    metrics: Row = {
        "verdict": verdict,
        "statement": headline(verdict, dynamic, videos=videos),
        "videos": videos,
        "clips": clips,
        **named("coarse_fine_ratio", overall),
        **named("coarse_fine_ratio_dynamic", dynamic),
        **named("coarse_fine_ratio_early", early),
        "improvement_pct": None if overall.value is None else (overall.value - 1) * 100,
    }
    for name, values in losses.items():
        metrics[f"loss_{name}"] = mean_loss(values)
    for name in measured_arms(losses):
        if name not in ("coarse", "fine"):
            metrics |= named(f"ratio_{name}", bootstrap.ratio(coarse, losses[name]))
            metrics |= named(
                f"ratio_{name}_dynamic", bootstrap.ratio(coarse, losses[name], DYNAMIC)
            )
            against[name] = bootstrap.ratio(losses[name], fine, DYNAMIC)
    for name, estimate in against.items():
        metrics |= named(f"{name}_fine_ratio_dynamic", estimate)
    if "caption_fine" in losses:
        said = bootstrap.ratio(losses["caption_coarse"], losses["caption_fine"])
        metrics |= named("caption_coarse_fine_ratio", said)
    return metrics


def _clip_rows(losses: Losses, clips: Sequence[ClipName]) -> list[Row]:
    rows = []
    for number, clip in enumerate(clips):
        one = {name: values[number :: len(clips)] for name, values in losses.items()}
        rows.append({"video_id": clip.video_id, "key": clip.key, **_plain_figures(one)})
    return rows


def _plain_figures(losses: Losses) -> Row:
    """Mean losses and ratios without an interval."""
    alone = Bootstrap(["one video"] * len(losses["fine"]), samples=0, seed=0)
    figures: Row = {f"loss_{name}": mean_loss(values) for name, values in losses.items()}
    for suffix, frames in (("", ALL), ("_dynamic", DYNAMIC)):
        estimate = alone.ratio(losses["coarse"], losses["fine"], frames)
        figures[f"coarse_fine_ratio{suffix}"] = estimate.value
    return figures


def _frame_rows(losses: Losses, bootstrap: Bootstrap) -> list[Row]:
    rows = []
    for index in range(losses["fine"].shape[1]):
        frame = slice(index, index + 1)
        row: Row = {"frame": index + 1}
        row |= {f"loss_{name}": mean_loss(losses[name], frame) for name in measured_arms(losses)}
        estimate = bootstrap.ratio(losses["coarse"], losses["fine"], frame)
        rows.append(row | named("coarse_fine_ratio", estimate))
    return rows


def _motion_rows(losses: Losses, bootstrap: Bootstrap, *, clips: int) -> list[Row]:
    rows = []
    for number, group in enumerate(motion_quartiles(losses["persistence"][:clips]), start=1):
        # The same clips of every training.
        chosen = np.concatenate([group + start for start in range(0, len(losses["fine"]), clips)])
        video_ids = [bootstrap.video_ids[row] for row in chosen]
        replicates = [bootstrap.replicates[row] for row in chosen]
        within = Bootstrap(video_ids, bootstrap.samples, bootstrap.seed, replicates)
        estimate = within.ratio(losses["coarse"][chosen], losses["fine"][chosen], DYNAMIC)
        rows.append(
            {
                "quartile": number,
                "clips": len(group),
                "videos": len(set(video_ids)),
                "loss_persistence": mean_loss(losses["persistence"][chosen]),
                **named("coarse_fine_ratio_dynamic", estimate),
            }
        )
    return rows
