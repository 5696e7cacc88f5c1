"""What an evaluation found, as one document: metrics, tables, verdict, page, terminal and card.

Its file is flat (`fvlm.core.document`). A ratio is one of mean losses; `_dynamic` is over frames
t >= 3, `_early` over frames 1 and 2; `_low` and `_high` are the ends of its 95% interval.
None: undefined.
"""

from typing import Annotated, Literal

from pydantic import Field, SkipValidation

from fvlm.core.document import Document
from fvlm.statistics.arms import BASELINES, MEANINGS, measured_controls
from fvlm.statistics.ratio import UNDEFINED, Estimate

Label = Literal[
    "worse", "inconclusive", "one_training", "validated", "proof_of_concept", "very_promising"
]
Name = SkipValidation[str]  # names of files need not be UTF-8, and pydantic refuses these


class ArmResult(Document):
    """An arm: its mean loss, coarse / its loss (above 1: better than coarse), its / fine loss.

    The ratios of the coarse and the fine pass stand in `HeldOut` itself.
    """

    loss: Annotated[float | None, "loss_{}"]
    coarse_ratio: Annotated[Estimate | None, "ratio_{}"] = None
    coarse_ratio_dynamic: Annotated[Estimate | None, "ratio_{}_dynamic"] = None
    fine_ratio_dynamic: Annotated[Estimate | None, "{}_fine_ratio_dynamic"] = None


class CaptionResult(Document):
    """Caption losses of the two passes, of a model that predicts captions; coarse / fine.

    uniform: the loss of a guess that finds every token of the vocabulary as likely.
    """

    coarse: Annotated[float | None, "caption_loss_coarse"]
    fine: Annotated[float | None, "caption_loss_fine"]
    uniform: Annotated[float, "caption_loss_uniform"]
    ratio: Annotated[Estimate, "caption_coarse_fine_ratio"]


class HeldOut(Document):
    """Both passes and every other arm on the held-out clips.

    groups: the videos were cut from so many films. coarse_trained: whether the coarse loss had a
    weight. over_frame_1, over_frame_2: the ratio over frames t >= 3 divided by that of frame 1 or
    2, where looking cannot help. cls_masked: both passes with CLS masked. skill_over_ar1: 1 - fine
    loss / AR(1) loss over frames t >= 3: 0 is what copying with a decay gains.
    detectable_ratio: the true ratio that is told from 1 in 80% of repeats;
    groups_for_ratio_1_05: how many groups it takes for 1.05. by_seed: of each training, where there
    are several. gap_closed: (coarse - fine) / (coarse - arm) in losses over frames t >= 3, of the
    arms with pooled tokens: the share of what there is to see that one token by query brings.
    """

    videos: int
    groups: int
    clips: int
    seeds: int
    coarse_trained: bool
    coarse_fine_ratio: Estimate
    coarse_fine_ratio_dynamic: Estimate
    coarse_fine_ratio_early: Estimate
    over_frame_1: Annotated[Estimate, "coarse_fine_ratio_dynamic_over_frame_1"]
    over_frame_2: Annotated[Estimate, "coarse_fine_ratio_dynamic_over_frame_2"]
    cls_masked: Annotated[Estimate, "coarse_fine_ratio_cls_masked_dynamic"]
    skill_over_ar1: Estimate
    improvement_pct: float | None
    detectable_ratio: float | None
    groups_for_ratio_1_05: int | None
    by_seed: Annotated[dict[int, Estimate], "coarse_fine_ratio_dynamic_seed_{}"]
    arms: dict[str, ArmResult]
    captions: CaptionResult | None = None
    gap_closed: Annotated[dict[str, Estimate], "{}_gap_closed"] = Field(default_factory=dict)

    def against(self, arm: str) -> Estimate:
        """Loss of an arm / fine loss over frames t >= 3."""
        return self.arms[arm].fine_ratio_dynamic or UNDEFINED

    @property
    def baselines(self) -> dict[str, Estimate]:
        """Baseline / fine loss of everything that needs no model."""
        return {arm: self.against(arm) for arm in BASELINES}

    @property
    def controls(self) -> dict[str, Estimate]:
        """Control / fine loss of everything that must be worse than the fine pass."""
        return {arm: self.against(arm) for arm in measured_controls(self.arms)}


class OnTrainingClips(Document):
    """The ratio and its controls on as many clips that were trained on: no evidence, an alarm.

    against: loss of the coarse pass and of every control / fine loss over frames t >= 3.
    """

    videos: Annotated[int, "train_videos"]
    ratio: Annotated[Estimate, "train_coarse_fine_ratio"]
    against: Annotated[dict[str, Estimate], "train_{}_fine_ratio_dynamic"]


class PassAttention(Document):
    """Over the patches: entropy as a share of uniform attention's, and the largest share of one
    patch in multiples of uniform's. cls_share: the share of CLS and registers in all attention.
    """

    entropy: Annotated[float, "attention_entropy_{}"]
    peak: Annotated[float, "attention_peak_{}"]
    cls_share: Annotated[float, "attention_cls_share_{}"]


class Attention(Document):
    """Means over all held-out clips and frames: attention by pass, cosine of successive queries."""

    passes: dict[str, PassAttention]
    query_similarity: float


class Evaluation(Document):
    """data/evaluation.json and, rounded, metrics/evaluate.json.

    weights: the first digits of the trained weights' sha256. footage_left_out: held-out
    clips not evaluated, as training clips show the same footage. arithmetic: the device and the
    types that the losses were computed in.
    """

    verdict: Label
    statement: str
    held_out: HeldOut
    footage_left_out: int
    on_training_clips: OnTrainingClips
    attention: Attention
    weights: str
    arithmetic: str


class ClipRow(Document):
    """A row of plots/evaluate.csv: mean losses and ratios of one clip, means over trainings.

    start: seconds from the video's first frame.
    """

    video_id: Name
    key: str
    start: float | None = None
    losses: Annotated[dict[str, float | None], "loss_{}"]
    coarse_fine_ratio: float | None
    coarse_fine_ratio_dynamic: float | None


class FrameRow(Document):
    """A row of plots/evaluate_frames.csv: one frame index, counted from 1."""

    frame: int
    losses: Annotated[dict[str, float | None], "loss_{}"]
    ratio: Annotated[Estimate, "coarse_fine_ratio"]


class MotionRow(Document):
    """A row of plots/evaluate_motion.csv: a quartile of the clips by their persistence error."""

    quartile: int
    clips: int
    videos: int
    loss_persistence: float | None
    ratio: Annotated[Estimate, "coarse_fine_ratio_dynamic"]


SHORT = {
    "coarse": "coarse",
    "autoregressive": "frame by frame (train/inference gap)",
    "ar1": "AR(1) of the latents",
    "mean": "mean latent",
    "message_only": "the static query's attention, with the message",
}


def short_meaning(arm: str) -> str:
    """An arm's meaning where it is held against the fine pass."""
    return SHORT.get(arm, MEANINGS[arm].removeprefix("fine pass with "))
