import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaModel

from fvlm.encoders.dino import DinoEncoder
from fvlm.model.foveated import FoveatedModel
from fvlm.model.query_attention import DeepAttention, ShallowAttention
from fvlm.training.optim import (
    Schedule,
    TrainParams,
    make_optimizer,
    make_schedule,
    set_learning_rate,
)


def make_params(**changes: object) -> TrainParams:
    values: dict[str, object] = {
        "input": "features",
        "start": "",
        "num_frames": 3,
        "frames": "random",
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_samples": 100,
        "max_hours": 1.0,
        "lr": 1e-3,
        "encoder_lr": 0.0,
        "query_lr_factor": 1.0,
        "gradient_checkpointing": "none",
        "warmup_samples": 20,
        "schedule": "cosine",
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "token_noise": 0.0,
        "lambda_coarse": 1.0,
        "lambda_recon": 0.1,
        "dtype": "float32",
        "compile": "none",
        "seeds": [0],
        "coarse_only": False,
        "checkpoint_samples": 8,
        "validate_samples": 0,
        "parallel": "ddp",
    }
    return TrainParams.model_validate(values | changes)


def factors(
    *, warmup_steps: int, steps: int, count: int, schedule: Schedule = "cosine"
) -> list[float]:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = make_schedule(optimizer, schedule=schedule, warmup_steps=warmup_steps, steps=steps)
    return [factor(step) for step in range(count)]


def test_warmup_rises_to_the_peak_and_the_cosine_falls() -> None:
    values = factors(warmup_steps=4, steps=20, count=20)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later < earlier for earlier, later in pairwise(values[4:]))
    assert 0 < values[-1] < 0.02


def test_the_schedule_never_climbs_after_its_end() -> None:
    values = factors(warmup_steps=2, steps=10, count=60)
    assert values[9:] == [values[9]] * 51


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_trainings_have_positive_rates(steps: int) -> None:
    assert all(0 < value <= 1 for value in factors(warmup_steps=0, steps=steps, count=steps))


def test_the_schedule_is_a_pure_function_of_the_step() -> None:
    forward = factors(warmup_steps=3, steps=12, count=12)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, schedule="cosine", warmup_steps=3, steps=12)
    assert [schedule(step) for step in reversed(range(12))] == forward[::-1]


def test_a_constant_schedule_knows_nothing_of_its_length() -> None:
    """Also of a training that is not longer than the warm-up."""
    short, long = (
        make_params(schedule="constant", warmup_samples=16, batch_size=4, max_samples=samples)
        for samples in (16, 48)
    )
    assert short.warmup_steps == long.warmup_steps == 4
    given = [
        factors(warmup_steps=4, steps=params.steps, count=params.steps, schedule="constant")
        for params in (short, long)
    ]
    assert given[1] == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 8)
    assert given[0] == given[1][:4]


def test_weight_decay_by_name() -> None:
    language = LlamaModel(
        LlamaConfig(
            vocab_size=4,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    model = FoveatedModel(
        language=language,
        attention=ShallowAttention(8, temperature=1.0),
        latent_shape=(4, 2, 2),
        fine_iterations=1,
    )
    language.layers[0].mlp.requires_grad_(False)
    params = make_params()
    optimizer = make_optimizer(model, params)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, kept, queries = (
        {names[parameter] for parameter in group["params"]} for group in optimizer.param_groups
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.0]
    assert queries == {"q_static", "q_init"}
    assert decayed == {
        *(f"language.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
        "to_query.weight",
        "to_visual.weight",
        *(f"head.film.{number}.weight" for number in (0, 2)),
        *(f"head.{part}.{number}.weight" for part in ("before", "after") for number in (0, 2, 4)),
    }
    assert {
        "y_init",
        "mode_tokens.coarse",
        "mode_tokens.fine",
        "visual_norm.weight",
        "to_visual.bias",
        "language.embed_tokens.weight",
        "language.norm.weight",
        "language.layers.0.input_layernorm.weight",
        "head.before.0.bias",
    } <= kept
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    assert decayed | kept | queries == trainable
    assert len(optimizer.param_groups[0]["params"]) == len(decayed), "no weight twice"


def test_the_learned_queries_have_a_rate_of_their_own() -> None:
    model = nn.Module()
    model.q_static, model.weight = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = make_optimizer(model, make_params(query_lr_factor=7.0))
    set_learning_rate(optimizer, 0.1)
    rates = [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
    assert sorted(rates) == [(0.1, 1), (pytest.approx(0.7), 1)]


def test_the_rate_is_set_in_every_group() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), make_params())
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_the_encoder_has_its_own_rate() -> None:
    """All of it: the part that takes frames and the blocks of the query attention."""
    sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    encoder = DinoEncoder(Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=14)))
    tail = encoder.cut(1)
    assert tail is not None
    model = FoveatedModel(
        language=LlamaModel(LlamaConfig(**sizes, vocab_size=4, intermediate_size=24)),
        attention=DeepAttention(tail),
        latent_shape=(4, 2, 2),
        fine_iterations=1,
        encoder=encoder,
    )
    frozen = make_optimizer(model, make_params(input="frames"))
    model.train_encoder()
    optimizer = make_optimizer(model, make_params(input="frames", lr=1e-3, encoder_lr=1e-4))
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [0.5, 0.5, 0.05, 0.05, 0.5]
    )
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [0.1, 0.0, 0.1, 0.0, 0.0]
    names = {parameter: name for name, parameter in model.named_parameters()}
    own = {
        names[parameter] for group in optimizer.param_groups[2:4] for parameter in group["params"]
    }
    assert own == {
        name
        for name in names.values()
        if name.startswith(("encoder.", "attention.tail.")) and not name.endswith("mask_token")
    }
    assert len(frozen.param_groups) == 3
    for group in frozen.param_groups:
        assert not own & {names[parameter] for parameter in group["params"]}


def test_an_encoder_that_is_not_there_has_no_rate() -> None:
    with pytest.raises(ValueError, match=r"must be 0 with train.input: features .* got 0.1"):
        make_params(encoder_lr=0.1)


def test_steps_follow_from_clips() -> None:
    params = make_params(
        batch_size=4, gradient_accumulation_steps=2, max_samples=100, warmup_samples=16
    )
    assert params.samples_per_step == 8
    assert params.steps == math.ceil(100 / 8)
    assert params.warmup_steps == 2
    assert make_params(batch_size=64, max_samples=10, warmup_samples=10).warmup_steps == 0
    assert make_params(max_samples=20, warmup_samples=20).warmup_steps == 4


def test_a_warmup_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be <= train.max_samples \(100\), got 101"):
        make_params(warmup_samples=101)
