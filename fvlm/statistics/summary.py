"""From losses [clips,T] by arm to what an evaluation found on these clips."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fvlm.statistics.arms import (
    CAPTIONS,
    POOLED,
    ClipName,
    Losses,
    measured_arms,
    measured_controls,
)
from fvlm.statistics.evaluation import (
    ArmResult,
    CaptionResult,
    ClipRow,
    FrameRow,
    HeldOut,
    MotionRow,
    OnTrainingClips,
)
from fvlm.statistics.ratio import (
    ALL,
    DYNAMIC,
    EARLY,
    UNDEFINED,
    Array,
    Bootstrap,
    Estimate,
    mean_loss,
    motion_quartiles,
    skill,
)


@dataclass(frozen=True)
class Summary:
    """What was found on all held-out clips, by frame index and by quartile of motion."""

    held_out: HeldOut
    frames: list[FrameRow]
    motion: list[MotionRow]


@dataclass(frozen=True)
class About:
    """What the losses do not say. coarse_trained: whether train.lambda_coarse is above 0;
    vocabulary: tokens that a caption is predicted from, 0 without captions.
    """

    coarse_trained: bool = True
    vocabulary: int = 0


def summarize(
    trained: Mapping[int, Losses],
    clips: Sequence[ClipName],
    *,
    samples: int,
    seed: int,
    about: About = About(),
) -> Summary:
    """What held-out clips say; `samples` resamples of their groups for each interval.

    `trained` holds the losses of the same clips by seed of the training: replicates.
    """
    losses, bootstrap = _join(trained, clips, samples, seed)
    videos = len({clip.video_id for clip in clips})
    return Summary(
        held_out=_held_out(trained, losses, bootstrap, about, videos=videos),
        frames=_frame_rows(losses, bootstrap),
        motion=_motion_rows(losses, bootstrap, clips),
    )


def on_training_clips(
    trained: Mapping[int, Losses], clips: Sequence[ClipName], *, samples: int, seed: int
) -> OnTrainingClips:
    """The same ratio on clips that were trained on; arguments as of `summarize`."""
    losses, bootstrap = _join(trained, clips, samples, seed)
    fine = losses["fine"]
    return OnTrainingClips(
        videos=len({clip.video_id for clip in clips}),
        ratio=bootstrap.ratio(losses["coarse"], fine),
        against={
            arm: bootstrap.ratio(losses[arm], fine, DYNAMIC)
            for arm in ("coarse", *measured_controls(losses))
        },
    )


def _join(
    trained: Mapping[int, Losses], clips: Sequence[ClipName], samples: int, seed: int
) -> tuple[Losses, Bootstrap]:
    """Losses [seeds*clips,T], one training after the other, and whose rows they are."""
    losses = {
        arm: np.concatenate([found[arm] for found in trained.values()])
        for arm in next(iter(trained.values()))
    }
    groups = [clip.group_id for clip in clips] * len(trained)
    replicates = np.repeat(list(trained), len(clips)).tolist()
    return losses, Bootstrap(groups, samples, seed, replicates)


def _held_out(
    trained: Mapping[int, Losses],
    losses: Losses,
    bootstrap: Bootstrap,
    about: About,
    *,
    videos: int,
) -> HeldOut:
    coarse, fine = losses["coarse"], losses["fine"]
    overall, clips = bootstrap.ratio(coarse, fine), len(fine) // len(trained)
    one = Bootstrap(bootstrap.groups[:clips], bootstrap.samples, bootstrap.seed)
    power = bootstrap.power(coarse, fine, DYNAMIC)
    masked = losses["coarse_cls_masked"], losses["fine_cls_masked"]
    return HeldOut(
        videos=videos,
        groups=bootstrap.size,
        clips=clips,
        seeds=len(trained),
        coarse_trained=about.coarse_trained,
        coarse_fine_ratio=overall,
        coarse_fine_ratio_dynamic=bootstrap.ratio(coarse, fine, DYNAMIC),
        coarse_fine_ratio_early=bootstrap.ratio(coarse, fine, EARLY),
        over_frame_1=bootstrap.change(coarse, fine, DYNAMIC, since=slice(0, 1)),
        over_frame_2=bootstrap.change(coarse, fine, DYNAMIC, since=slice(1, 2)),
        cls_masked=bootstrap.ratio(*masked, DYNAMIC),
        skill_over_ar1=skill(bootstrap.ratio(losses["ar1"], fine, DYNAMIC)),
        detectable_ratio=power.detectable if power else None,
        groups_for_ratio_1_05=power.groups if power else None,
        improvement_pct=None if overall.value is None else (overall.value - 1) * 100,
        by_seed={
            seed: one.ratio(found["coarse"], found["fine"], DYNAMIC)
            for seed, found in trained.items()
            if len(trained) > 1
        },
        arms={arm: _arm(arm, losses, bootstrap) for arm in measured_arms(losses)},
        captions=_captions(losses, bootstrap, about.vocabulary),
        gap_closed={
            arm: _gap_closed(losses[arm], losses, bootstrap) for arm in POOLED if arm in losses
        },
    )


def _arm(arm: str, losses: Losses, bootstrap: Bootstrap) -> ArmResult:
    own, loss = losses[arm], mean_loss(losses[arm])
    if arm in ("coarse", "fine"):
        return ArmResult(loss=loss)
    return ArmResult(
        loss=loss,
        coarse_ratio=bootstrap.ratio(losses["coarse"], own),
        coarse_ratio_dynamic=bootstrap.ratio(losses["coarse"], own, DYNAMIC),
        fine_ratio_dynamic=bootstrap.ratio(own, losses["fine"], DYNAMIC),
    )


def _gap_closed(arm: Array, losses: Losses, bootstrap: Bootstrap) -> Estimate:
    """Undefined where the arm is not shown to be better than the coarse pass: there is no gap."""
    coarse = losses["coarse"]
    gap = bootstrap.ratio(coarse, arm, DYNAMIC)
    if gap.low is None or gap.low <= 1:
        return UNDEFINED
    return bootstrap.share(coarse - losses["fine"], coarse - arm, DYNAMIC)


def _captions(losses: Losses, bootstrap: Bootstrap, vocabulary: int) -> CaptionResult | None:
    if CAPTIONS[0] not in losses:
        return None
    coarse, fine = (losses[name] for name in CAPTIONS)
    return CaptionResult(
        coarse=mean_loss(coarse),
        fine=mean_loss(fine),
        uniform=math.log(vocabulary),
        ratio=bootstrap.ratio(coarse, fine),
    )


def clip_rows(trained: Mapping[int, Losses], clips: Sequence[ClipName]) -> Iterator[ClipRow]:
    """What was found on each clip; `trained` as of `summarize`."""
    losses = {
        arm: np.stack([found[arm] for found in trained.values()], axis=1)
        for arm in next(iter(trained.values()))
    }  # [clips,seeds,T]
    means = {arm: _mean(values) for arm, values in losses.items()}
    coarse, fine = losses["coarse"], losses["fine"]
    ratios = [_ratio(coarse[..., frames], fine[..., frames]) for frames in (ALL, DYNAMIC)]
    for row, clip in enumerate(clips):
        found = {arm: _defined(values[row]) for arm, values in means.items()}
        overall, dynamic = (_defined(values[row]) for values in ratios)
        yield ClipRow(
            video_id=clip.video_id,
            key=clip.key,
            start=clip.start,
            losses=found,
            coarse_fine_ratio=overall,
            coarse_fine_ratio_dynamic=dynamic,
        )


def _mean(values: Array) -> Array:
    """Mean of the defined entries of each clip [clips,seeds,T]; NaN where there are none."""
    defined = np.isfinite(values)
    sums, counts = np.where(defined, values, 0).sum(axis=(1, 2)), defined.sum(axis=(1, 2))
    means: Array = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
    return means


def _ratio(above: Array, below: Array) -> Array:
    """Ratio of the means of each clip over entries that both define; NaN where undefined."""
    defined = np.isfinite(above) & np.isfinite(below)
    top, bottom = (np.where(defined, values, 0).sum(axis=(1, 2)) for values in (above, below))
    ratios: Array = np.divide(top, bottom, out=np.full(len(above), np.nan), where=bottom != 0)
    return ratios


def _defined(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def _frame_rows(losses: Losses, bootstrap: Bootstrap) -> list[FrameRow]:
    def ratio(frame: slice) -> Estimate:
        return bootstrap.ratio(losses["coarse"], losses["fine"], frame)

    return [
        FrameRow(
            frame=index + 1,
            losses={
                arm: mean_loss(losses[arm], slice(index, index + 1))
                for arm in measured_arms(losses)
            },
            ratio=ratio(slice(index, index + 1)),
        )
        for index in range(losses["fine"].shape[1])
    ]


def _motion_rows(
    losses: Losses, bootstrap: Bootstrap, clips: Sequence[ClipName]
) -> list[MotionRow]:
    rows, count = [], len(clips)
    for number, group in enumerate(motion_quartiles(losses["persistence"][:count]), start=1):
        # The same clips of every training.
        chosen = np.concatenate([group + start for start in range(0, len(losses["fine"]), count)])
        within = bootstrap.of(chosen)
        rows.append(
            MotionRow(
                quartile=number,
                clips=len(group),
                videos=len({clips[row].video_id for row in group}),
                loss_persistence=mean_loss(losses["persistence"][chosen]),
                ratio=within.ratio(losses["coarse"][chosen], losses["fine"][chosen], DYNAMIC),
            )
        )
    return rows
