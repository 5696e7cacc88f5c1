"""The loss of a batch is the mean of what its clips lose alone, with and without text."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from fvlm.clips.batch import Batch, Captions
from fvlm.model.captions import Text
from fvlm.model.foveated import FoveatedModel
from fvlm.model.query_attention import ShallowAttention
from fvlm.training.objective import add_noise, batch_losses
from fvlm.training.optim import TrainParams

B, T, N, D, LATENT, VOCABULARY = 4, 3, 5, 6, (2, 2, 2), 9
LENGTHS = (3, 0, 6, 1)  # tokens of each clip's caption


def make_model(text: Text, *, fine_iterations: int = 1) -> FoveatedModel:
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 8, "intermediate_size": 8}
    config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.5)
    model = FoveatedModel(
        language=LlamaModel(config),
        attention=ShallowAttention(D, temperature=0.3),
        latent_shape=LATENT,
        fine_iterations=fine_iterations,
        text=text,
    )
    if text == "none":
        model.language.set_input_embeddings(torch.nn.Identity())
    return model


def make_batch(text: Text) -> Batch:
    M = max(LENGTHS)
    mask = torch.arange(M) < torch.tensor(LENGTHS)[:, None]
    if text == "condition":
        mask = mask.flip(1)
    captions = Captions(torch.randint(1, VOCABULARY, (B, M)) * mask, mask)
    return Batch(
        inputs=torch.randn(B, T, N, D),
        latents=torch.randn(B, T, *LATENT),
        keys=[str(number) for number in range(B)],
        captions=None if text == "none" else captions,
    )


def clip_of(batch: Batch, number: int, text: Text) -> Batch:
    """One clip alone, with no more columns of padding than it needs."""
    one = slice(number, number + 1)
    captions = None
    if batch.captions is not None:
        columns = max(2, LENGTHS[number])
        own = slice(-columns, None) if text == "condition" else slice(0, columns)
        captions = Captions(batch.captions.ids[one, own], batch.captions.mask[one, own])
    return Batch(batch.inputs[one], batch.latents[one], batch.keys[one], captions)


def make_params(**changes: object) -> TrainParams:
    values: dict[str, Any] = {
        "input": "features",
        "start": "",
        "num_frames": T,
        "frames": "random",
        "batch_size": B,
        "gradient_accumulation_steps": 1,
        "max_samples": B,
        "max_hours": 1.0,
        "lr": 1e-3,
        "encoder_lr": 0.0,
        "query_lr_factor": 1.0,
        "gradient_checkpointing": "none",
        "warmup_samples": 0,
        "schedule": "cosine",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "token_noise": 0.0,
        "lambda_coarse": 0.7,
        "lambda_recon": 0.1,
        "dtype": "float32",
        "seeds": [0],
        "coarse_only": False,
        "checkpoint_samples": B,
        "validate_samples": 0,
        "compile": "none",
        "parallel": "ddp",
    }
    return TrainParams.model_validate(values | changes)


@pytest.mark.parametrize("text", ["none", "condition", "caption"])
def test_a_clips_loss_and_gradient_do_not_depend_on_its_batch_mates(text: Text) -> None:
    """Padding, another clip's caption, a clip without any: the batch is the mean of its clips."""
    model, batch, params = make_model(text), make_batch(text), make_params()
    together = batch_losses(model, batch, params)
    together["loss"].backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    apart = [batch_losses(model, clip_of(batch, number, text), params) for number in range(B)]
    for name, value in together.items():
        mean = torch.stack([losses[name] for losses in apart]).mean()
        torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-5)
    for losses in apart:
        (losses["loss"] / B).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_the_loss_of_both_passes() -> None:
    texts: tuple[Text, ...] = ("none", "condition")
    for text in texts:
        found = batch_losses(make_model(text), make_batch(text), make_params())
        expected = found["loss_fine"] + 0.7 * found["loss_coarse"]
        torch.testing.assert_close(found["loss"], expected)
        assert list(found) == ["loss", "loss_coarse", "loss_fine"]
    found = batch_losses(make_model("caption"), make_batch("caption"), make_params())
    coarse, fine = (
        found[f"loss_caption_{name}"] + 0.1 * found[f"loss_{name}"] for name in ("coarse", "fine")
    )
    torch.testing.assert_close(found["loss"], fine + 0.7 * coarse)


@pytest.mark.parametrize("text", ["none", "caption"])
def test_without_fine_passes_the_coarse_loss_is_all_and_trains_every_weight(text: Text) -> None:
    batch = make_batch(text)
    torch.manual_seed(0)
    model = make_model(text)
    torch.manual_seed(0)
    alone = make_model(text, fine_iterations=0)
    expected, found = (batch_losses(one, batch, make_params()) for one in (model, alone))
    assert torch.equal(found["loss_coarse"], expected["loss_coarse"])
    coarse = found["loss_coarse"]
    if text == "caption":
        coarse = found["loss_caption_coarse"] + 0.1 * coarse
    torch.testing.assert_close(found["loss"], coarse)
    found["loss"].backward()
    for name, parameter in alone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {name for name, value in alone.named_parameters() if not value.requires_grad}
    assert frozen == {"q_init", "to_query.weight", "mode_tokens.fine"}


@pytest.mark.parametrize(
    ("change", "text"),
    [({"lambda_coarse": 0.5}, "none"), ({"lambda_recon": 0.5}, "caption")],
)
def test_its_parameters_change_the_loss(change: dict[str, Any], text: Text) -> None:
    model, batch = make_model(text), make_batch(text)
    first, other = (batch_losses(model, batch, p) for p in (make_params(), make_params(**change)))
    assert not torch.allclose(first["loss"], other["loss"])
    assert torch.equal(first["loss_fine"], other["loss_fine"])


def test_a_batch_moves_with_its_captions() -> None:
    batch = make_batch("caption")
    moved = batch.to(torch.device("meta"))
    assert [value.device.type for value in moved.tensors()] == ["meta"] * 4
    assert replace(moved, captions=None).to(torch.device("meta")).captions is None


def test_token_noise_is_measured_by_each_clips_own_tokens() -> None:
    tokens = torch.randn(B, 8, 9, 40) * torch.tensor([0.1, 1.0, 5.0, 20.0])[:, None, None, None]
    batch = replace(make_batch("none"), inputs=tokens.half())
    added = add_noise(batch, range(B), make_params(token_noise=0.3)).inputs - tokens
    torch.testing.assert_close(
        added.flatten(1).std(dim=1), 0.3 * tokens.flatten(1).std(dim=1), rtol=0.1, atol=0
    )


def test_token_noise_depends_on_seed_and_position_alone() -> None:
    """Not on the batch, on what was drawn before, or on the generator of torch."""
    batch, params = make_batch("none"), make_params(token_noise=0.5)
    before = batch.inputs.clone()
    found = add_noise(batch, range(7, 7 + B), params).inputs
    assert torch.equal(batch.inputs, before)
    one = replace(batch, inputs=batch.inputs[2:3])
    torch.testing.assert_close(add_noise(one, range(9, 10), params).inputs[0], found[2])
    for position, seed in ((10, 0), (9, 1)):
        other = add_noise(
            one, range(position, position + 1), make_params(token_noise=0.5, seeds=[seed])
        )
        assert not torch.allclose(other.inputs[0], found[2])
    assert add_noise(batch, range(B), make_params()) is batch


def test_token_noise_needs_tokens() -> None:
    with pytest.raises(ValueError, match=r"must be 0 with train\.input: frames"):
        make_params(input="frames", token_noise=0.1)
