"""Optimizer and learning-rate schedule, pure in the step."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn
from transformers import get_scheduler

from fvlm.clips.batch import Input
from fvlm.clips.order import FrameChoice
from fvlm.clips.tokenizer import Place
from fvlm.core.device import Dtype
from fvlm.core.params import Params
from fvlm.encoders.dino import DinoEncoder, EncoderTail
from fvlm.training.blocks import Checkpointing, CompileMode, CompileModes
from fvlm.training.distributed import Parallel

Schedule = Literal["cosine", "constant"]
PooledCount = Literal[1, 4, 16, 49]  # square grids


class BudgetParams(Params):
    """What a section that trains demands of its clips and of its seeds, where it has such keys."""

    section: ClassVar[str]

    @field_validator("warmup_samples", check_fields=False)
    @classmethod
    def _warmup_fits(cls, value: int, info: ValidationInfo) -> int:
        """Of the field, not of the whole: so its fault is reported together with all others."""
        most = info.data.get("max_samples", value)  # absent when that is itself at fault
        if value > most:
            raise ValueError(f"must be <= {cls.section}.max_samples ({most}), got {value}")
        return value

    @field_validator("seeds", check_fields=False)
    @classmethod
    def _seeds_differ(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value) or min(value) < 0:
            raise ValueError(f"must be different numbers from 0 on, got {value}")
        return value


class TrainParams(BudgetParams):
    """Section `train` of params.yaml."""

    section = "train"

    input: Input
    start: str
    num_frames: int = Field(ge=1)
    frames: FrameChoice
    batch_size: int = Field(ge=1)
    gradient_accumulation_steps: int = Field(ge=1)
    max_samples: int = Field(ge=1)
    max_hours: float = Field(gt=0)
    lr: float = Field(gt=0)
    encoder_lr: float = Field(ge=0)
    query_lr_factor: float = Field(gt=0)
    gradient_checkpointing: Checkpointing
    warmup_samples: int = Field(ge=0)
    schedule: Schedule
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    token_noise: float = Field(ge=0)
    lambda_coarse: float = Field(ge=0)
    lambda_recon: float = Field(ge=0)
    dtype: Dtype
    compile: CompileMode | CompileModes
    seeds: list[int] = Field(min_length=1)
    coarse_only: bool
    pooled_tokens: list[PooledCount] = Field(default_factory=list)
    checkpoint_samples: int = Field(ge=1)
    validate_samples: int = Field(ge=0)
    parallel: Parallel

    @field_validator("encoder_lr")
    @classmethod
    def _encoder_is_there(cls, value: float, info: ValidationInfo) -> float:
        if value > 0 and info.data.get("input") == "features":
            raise ValueError(
                f"must be 0 with train.input: features (the encoder ran before), got {value}"
            )
        return value

    @field_validator("token_noise")
    @classmethod
    def _tokens_are_there(cls, value: float, info: ValidationInfo) -> float:
        if value > 0 and info.data.get("input") == "frames":
            raise ValueError(f"must be 0 with train.input: frames (it is for tokens), got {value}")
        return value

    @property
    def seed(self) -> int:
        """The first of `seeds`: that of models/foveated itself."""
        return self.seeds[0]

    @property
    def samples_per_step(self) -> int:
        """Clips in one optimizer step: the effective batch."""
        return self.batch_size * self.gradient_accumulation_steps

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return math.ceil(self.max_samples / self.samples_per_step)

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up; of a cosine never all steps."""
        wanted = round(self.warmup_samples / self.samples_per_step)
        return wanted if self.schedule == "constant" else min(wanted, self.steps - 1)


class InstructParams(BudgetParams):
    """Section `instruct` of params.yaml: in what it differs from section `train`.

    start: folder of a saved model, "" for pretrained parts alone; question: where questions stand;
    question_after: whether a model with its questions behind the video is trained too.
    """

    section = "instruct"

    start: str
    question: Place
    question_after: bool
    pooled_tokens: list[PooledCount]
    max_text_tokens: int = Field(ge=1)
    seeds: list[int] = Field(min_length=1)
    batch_size: int = Field(ge=1)
    max_samples: int = Field(ge=1)
    warmup_samples: int = Field(ge=0)
    lr: float = Field(gt=0)
    query_lr_factor: float = Field(gt=0)
    lambda_coarse: float = Field(ge=0)
    lambda_recon: float = Field(ge=0)
    checkpoint_samples: int = Field(ge=1)
    validate_samples: int = Field(ge=0)

    def over(self, train: TrainParams) -> TrainParams:
        """These where there are any, and all others as in `train`."""
        known = {name: value for name, value in vars(self).items() if name in vars(train)}
        return train.model_copy(update={**known, "coarse_only": False, "pooled_tokens": []})


class PreferParams(BudgetParams):
    """Section `prefer` of params.yaml; what it does not name is as in `instruct`, then `train`.

    beta: how strongly the model is held to the one it starts from; label_smoothing: share of labels
    that are taken for wrong; sft_weight: of the chosen answer's cross-entropy.
    """

    section = "prefer"

    beta: float = Field(gt=0)
    loss: Literal["sigmoid", "ipo"]
    label_smoothing: float = Field(ge=0, lt=0.5)
    sft_weight: float = Field(ge=0)
    batch_size: int = Field(ge=1)
    max_samples: int = Field(ge=1)
    warmup_samples: int = Field(ge=0)
    lr: float = Field(gt=0)
    lambda_coarse: float = Field(ge=0)

    @field_validator("label_smoothing")
    @classmethod
    def _labels_are_smoothed(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("loss") == "ipo":
            raise ValueError(f"must be 0 with prefer.loss: ipo, which has no labels, got {value}")
        return value

    def over(self, instruct: TrainParams) -> TrainParams:
        """These where there are any, and all others as in the stage before."""
        known = {name: value for name, value in vars(self).items() if name in vars(instruct)}
        return instruct.model_copy(update={**known, "validate_samples": 0})


def make_optimizer(model: nn.Module, params: TrainParams) -> torch.optim.AdamW:
    """AdamW on float32 weights.

    Matrices and convolutions decay; norms, biases, embeddings, queries, the first latent do not.
    A trainable patch encoder has groups of its own, with `lr_scale` = encoder_lr / lr, and so have
    the two learned queries, with query_lr_factor.
    """
    encoder = {
        parameter
        for module in model.modules()
        if isinstance(module, DinoEncoder | EncoderTail)
        for parameter in module.parameters()
    }
    queries = {
        parameter
        for name, parameter in model.named_parameters()
        if name.split(".")[-1] in ("q_static", "q_init")
    }
    scales = (1.0, params.encoder_lr / params.lr, params.query_lr_factor)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": decay, "lr_scale": lr_scale}
        for lr_scale in scales
        for decay in (params.weight_decay, 0.0)
    ]
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                matrix = isinstance(module, nn.Linear | nn.Conv2d) and parameter.ndim >= 2
                kind = 1 if parameter in encoder else 2 if parameter in queries else 0
                groups[2 * kind + (not matrix)]["params"].append(parameter)
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=params.lr, fused=True)


def make_schedule(
    optimizer: torch.optim.Optimizer, *, schedule: Schedule, warmup_steps: int, steps: int
) -> Callable[[int], float]:
    """Factor of the peak learning rate for optimizer step 0 .. steps - 1: warm-up, then `schedule`.

    Shifted by one so that neither the first nor the last update has rate zero; past the end it
    stays at its last value (the cosine itself would climb again). Of a constant schedule no factor
    depends on `steps`.
    """
    name = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup_steps + 1, num_training_steps=steps + 1
    )
    (factor, *_) = scheduler.lr_lambdas

    def at_step(step: int) -> float:
        return float(factor(min(step, steps - 1) + 1))

    return at_step


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the rate of every group: that times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_scale"]
