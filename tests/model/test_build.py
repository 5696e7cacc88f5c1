from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from fvlm.clips.batch import Input
from fvlm.clips.tokenizer import AnswerTokenizer
from fvlm.core.errors import CheckpointError, ParamsError, ShardError
from fvlm.core.io import read_json, write_json
from fvlm.encoders.dino import load_dino
from fvlm.model.build import (
    Architecture,
    build_answer_tokenizer,
    build_model,
    build_tokenizer,
    check_layer,
)
from fvlm.model.foveated import FoveatedModel, ModelParams, Prediction
from fvlm.model.query_attention import ShallowAttention
from fvlm.model.saved import (
    load_caption_tokenizer,
    load_model,
    load_tokenizer_of,
    read_config,
)
from fvlm.shards.manifest import EncodedManifest
from tests import tiny

D, H, L, SIZE = 16, 24, 3, 42
SIZES: dict[str, Any] = {
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": 2,
    "patch_size": 14,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained parts as the model hub has them: `llama`, `dinov2`, `dinov3`."""
    root = tmp_path_factory.mktemp("parts")
    llama = tiny.llama(vocab_size=8, num_hidden_layers=2)
    for name, tied in (("llama", True), ("untied", False)):
        llama.tie_word_embeddings = tied
        LlamaForCausalLM(llama).save_pretrained(root / name)
        words = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "cat": 2}, unk_token="a"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
        fast.save_pretrained(root / name)
    dinov2 = Dinov2Config(**SIZES, mlp_ratio=2, image_size=SIZE)
    Dinov2Model(dinov2).save_pretrained(root / "dinov2")
    dinov3 = DINOv3ViTConfig(**SIZES, intermediate_size=32, num_register_tokens=4)
    DINOv3ViTModel(dinov3).save_pretrained(root / "dinov3")
    return root


def make_params(folder: Path, **changes: Any) -> ModelParams:
    return tiny.model_params(**({"llm": str(folder / "llama")} | changes))


def make_manifest(folder: Path, family: str, *, layer: int, **dino: str) -> EncodedManifest:
    encoder, found = load_dino(str(folder / family))
    part = asdict(found) | {"blocks": L, "layer": layer} | dino
    return tiny.encoded_manifest((4, encoder.num_tokens(SIZE), D), (4, 4, 5, 5), dino=part)


def build(
    folder: Path,
    *,
    family: str = "dinov2",
    k: int = 0,
    input: Input = "features",
    **changes: object,
) -> tuple[FoveatedModel, Architecture]:
    manifest = make_manifest(folder, family, layer=L - k)
    return build_model(make_params(folder, query_layers=k, **changes), manifest, input=input)


def predict(model: FoveatedModel, *, tokens: int) -> torch.Tensor:
    torch.manual_seed(3)
    inputs = torch.randn(2, 3, tokens, D)
    if model.input == "frames":
        inputs = torch.randint(0, 256, (2, 3, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.no_grad():
        prediction: Prediction = model(inputs, torch.randn(2, 3, 4, 5, 5))
    return prediction.fine


@pytest.mark.parametrize("input", ["features", "frames"])
@pytest.mark.parametrize(
    ("family", "k"), [("dinov2", 0), ("dinov2", 2), ("dinov3", 1), ("dinov3", L)]
)
def test_a_saved_model_comes_back_bit_for_bit_without_its_parts(
    folder: Path,
    tmp_path: Path,
    family: str,
    k: int,
    input: Input,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes: dict[str, Any] = {"temperature": 0.5, "fine_iterations": 2}
    model, architecture = build(folder, family=family, k=k, input=input, **changes)
    tiny.save_model(model, architecture, tmp_path / "saved")
    monkeypatch.setattr("fvlm.model.build.load_language", None)
    monkeypatch.setattr("fvlm.model.build.load_dino", None)
    loaded = load_model(tmp_path / "saved")
    assert not loaded.training
    assert loaded.input == input
    weights = model.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    count = architecture.token_shape[0]
    assert torch.equal(predict(model.eval(), tokens=count), predict(loaded, tokens=count))
    saved = dict(read_config(tmp_path / "saved"))
    described = Architecture(**{name: saved[name] for name in Architecture.model_fields})
    tiny.save_model(loaded, described, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_the_embedding_table_is_not_saved(folder: Path, tmp_path: Path) -> None:
    tiny.save_model(*build(folder), tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "embed" in name]


def test_the_encoder_blocks_in_the_model_are_frozen(folder: Path) -> None:
    model, _ = build(folder, k=2)
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith("attention.tail.")}
    assert frozen


def test_llm_layers_change_the_computation(folder: Path) -> None:
    short, _ = build(folder, llm_layers=1)
    whole, _ = build(folder, llm_layers=0)
    assert len(short.language.layers) == 1
    assert len(whole.language.layers) == 2
    short.load_state_dict(whole.state_dict(), strict=False)
    assert not torch.allclose(predict(short, tokens=10), predict(whole, tokens=10))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("text", ["condition", "caption"])
def test_a_model_with_text_comes_back_with_its_tokenizer(
    folder: Path, tmp_path: Path, text: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, architecture = build(
        folder, text=text, llm=str(folder / ("llama" if tied else "untied"))
    )
    assert (model.output is None) == (tied or text == "condition")
    tokenizer = build_tokenizer(make_params(folder, text=text))
    tiny.save_model(model, architecture, tmp_path, tokenizer=tokenizer)
    for name in ("load_language", "load_output", "load_tokenizer"):
        monkeypatch.setattr(f"fvlm.model.build.{name}", None)
    loaded, words = load_model(tmp_path), load_caption_tokenizer(tmp_path)
    assert tokenizer is not None
    assert words is not None
    captions = words(["a cat", "", "cat " * 20])
    assert torch.equal(captions.ids, tokenizer(["a cat", "", "cat " * 20]).ids)
    assert captions.mask.sum(1).tolist() == [2 if text == "condition" else 3, 0, 8]
    inputs, latents = torch.randn(3, 2, 10, D), torch.randn(3, 2, 4, 5, 5)
    with torch.no_grad():
        found, expected = (m(inputs, latents, captions) for m in (loaded, model))
    assert torch.equal(found.fine, expected.fine)
    if text == "caption":
        assert torch.equal(found.caption_fine, expected.caption_fine)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: cannot load the tokenizer"):
        load_caption_tokenizer(tmp_path)


@pytest.mark.parametrize("llm", ["llama", "untied", "untrained:32x1"])
def test_a_model_that_answers_comes_back_with_its_chat(
    folder: Path, tmp_path: Path, llm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(folder, text="answer", llm=llm if ":" in llm else str(folder / llm))
    tokenizer = build_answer_tokenizer(params, "before", ["a cat ?"])
    manifest = make_manifest(folder, "dinov2", layer=L)
    model, architecture = build_model(params, manifest, vocabulary=tokenizer.vocabulary)
    assert (model.output is None) == (llm != "untied")
    assert len(model.words) == (5 if ":" in llm else 8)
    written = ("", "", "") if ":" in llm else ("Question: ", "\n", "Answer: ")
    chat = tokenizer.chat
    assert (chat.before, chat.behind, chat.header) == written
    tiny.save_model(model, architecture, tmp_path, tokenizer=tokenizer)
    for name in ("load_language", "load_output", "load_tokenizer"):
        monkeypatch.setattr(f"fvlm.model.build.{name}", None)
    loaded = load_model(tmp_path)
    words = loaded.tokenizer
    assert isinstance(words, AnswerTokenizer)
    assert (words.chat, words.eos) == (chat, tokenizer.eos)
    captions = words(["a cat ?", "cat"], ["cat", "a a a"])
    assert torch.equal(captions.ids, tokenizer(["a cat ?", "cat"], ["cat", "a a a"]).ids)
    inputs, latents = torch.randn(2, 2, 10, D), torch.randn(2, 2, 4, 5, 5)
    with torch.no_grad():
        found, expected = (m(inputs, latents, captions) for m in (loaded, model.eval()))
    for name in ("fine", "caption_coarse", "caption_fine"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    with pytest.raises(CheckpointError, match="answers questions: it is judged by `quiz`"):
        load_caption_tokenizer(tmp_path)
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | {"chat": None})
    with pytest.raises(CheckpointError, match=r"config.json: chat is missing"):
        load_tokenizer_of(tmp_path)


def test_the_output_head_is_the_pretrained_one(folder: Path) -> None:
    whole = LlamaForCausalLM.from_pretrained(folder / "untied")
    model, _ = build(folder, text="caption", llm=str(folder / "untied"), llm_layers=1)
    assert model.output is not None
    assert torch.equal(model.output.weight, whole.lm_head.weight)
    assert torch.equal(model.language.embed_tokens.weight, whole.model.embed_tokens.weight)


def test_text_parameters_change_the_computation(folder: Path) -> None:
    """`text` reaches the model, `max_text_tokens` the tokenizer."""
    assert [build(folder, text=text)[0].text for text in ("none", "condition")] == [
        "none",
        "condition",
    ]
    assert build_tokenizer(make_params(folder, text="none")) is None
    counts = []
    for most in (2, 5):
        words = build_tokenizer(make_params(folder, text="condition", max_text_tokens=most))
        assert words is not None
        counts.append(int(words(["a cat a cat a cat"]).mask.sum()))
    assert counts == [2, 5]


# Of every parameter of the model another value, and what it needs beside it.
CHANGES: dict[str, tuple[object, dict[str, Any]]] = {
    "llm": ("untied", {}),
    "llm_layers": (1, {}),
    "query_layers": (1, {"input": "frames"}),
    "intermediate_tokens": (True, {"layer": 1}),
    "query_role": ("question", {"query_layers": 2}),
    "query_reads": ("patches", {}),
    "temperature": (0.1, {}),
    "fine_iterations": (2, {}),
    "head": ("residual", {}),
    "head_channels": (12, {}),
    "text": ("condition", {}),
    "max_text_tokens": (1, {"text": "condition"}),
}


def outcome(
    folder: Path, *, input: Input = "features", layer: int | None = None, **changes: Any
) -> torch.Tensor | None:
    """What a model of these parameters predicts of fixed clips; None: it is not built at all."""
    params = make_params(folder, **changes)
    stored = L - params.query_layers if layer is None else layer
    torch.manual_seed(1)
    try:
        model, _ = build_model(params, make_manifest(folder, "dinov2", layer=stored), input=input)
    except ShardError:
        return None
    words = build_tokenizer(params)
    torch.manual_seed(3)
    inputs = torch.randn(2, 3, 10, D)
    if input == "frames":
        inputs = torch.randint(0, 256, (2, 3, 3, SIZE, SIZE), dtype=torch.uint8)
    captions = words(["a cat a", "cat"]) if words else None
    with torch.no_grad():
        prediction: Prediction = model.eval()(inputs, torch.randn(2, 3, 4, 5, 5), captions)
    return prediction.fine


def test_every_parameter_is_known_to_change_the_computation() -> None:
    assert CHANGES.keys() == ModelParams.model_fields.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_every_parameter_changes_the_computation(folder: Path, name: str) -> None:
    value, needed = CHANGES[name]
    other = str(folder / str(value)) if name == "llm" else value
    first, second = outcome(folder, **needed), outcome(folder, **needed | {name: other})
    assert second is not None
    assert first is None or not torch.equal(first, second)
    assert (first is None) == (name == "intermediate_tokens")


@pytest.mark.parametrize("change", [{"temperature": 0.1}, {"fine_iterations": 2}])
def test_the_other_parameters_reach_the_model(folder: Path, change: dict[str, Any]) -> None:
    plain, _ = build(folder)
    changed, _ = build(folder, **change)
    changed.load_state_dict(plain.state_dict())
    assert not torch.equal(predict(plain, tokens=10), predict(changed, tokens=10))


@pytest.mark.parametrize("change", [{"temperature": 0.1}, {"query_role": "question"}])
def test_the_parameters_of_deep_queries_reach_the_model(
    folder: Path, change: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    default, _ = build(folder, k=2)
    changed, _ = build(folder, k=2, **change)
    changed.load_state_dict(default.state_dict())
    assert not torch.allclose(predict(default, tokens=10), predict(changed, tokens=10))


def test_the_heads_width_is_a_parameter(folder: Path) -> None:
    model, _ = build(folder, head_channels=12)
    assert model.head.film[-1].out_features == 2 * 12


def test_the_language_model_is_the_pretrained_one(folder: Path) -> None:
    model, _ = build(folder)
    pretrained = LlamaModel.from_pretrained(folder / "llama")
    for name, value in pretrained.state_dict().items():
        if name != "embed_tokens.weight":
            assert torch.equal(model.language.state_dict()[name], value), name


@pytest.mark.parametrize("k", [0, 1, L])
def test_frames_fit_any_depth_up_to_the_encoders(folder: Path, k: int) -> None:
    """The stored layer is that of the tokens, which a model with its own encoder does not read."""
    manifest = make_manifest(folder, "dinov3", layer=2)
    model, _ = build_model(make_params(folder, query_layers=k), manifest, input="frames")
    assert model.encoder is not None
    assert len(model.encoder.layers) == L - k
    with pytest.raises(ParamsError, match=rf"must be 0 \(shallow\) to {L}.* got {L + 1}"):
        build_model(make_params(folder, query_layers=L + 1), manifest, input="frames")


@pytest.mark.parametrize("layer", [0, L - 2, L])
def test_a_stored_layer_that_does_not_fit_names_both_parameters(folder: Path, layer: int) -> None:
    params = make_params(folder, query_layers=1)
    with pytest.raises(ShardError) as error:
        build_model(params, make_manifest(folder, "dinov2", layer=layer))
    assert f"encode.layer ({layer}) and model.query_layers (1) do not fit" in str(error.value)
    assert f"set model.query_layers: {L - layer} or encode.layer: {L - 1}" in str(error.value)


def test_shallow_attention_reads_intermediate_tokens_only_when_told(folder: Path) -> None:
    manifest = make_manifest(folder, "dinov2", layer=1)
    with pytest.raises(ShardError, match=r"or model\.intermediate_tokens: true$"):
        build_model(make_params(folder), manifest)
    params = make_params(folder, intermediate_tokens=True)
    model, architecture = build_model(params, manifest)
    final, _ = build_model(params, make_manifest(folder, "dinov2", layer=L))
    final.load_state_dict(model.state_dict())
    assert torch.equal(predict(model, tokens=10), predict(final, tokens=10))  # tokens are tokens
    tiny.save_model(model, architecture, folder / "model")
    assert isinstance(load_model(folder / "model").attention, ShallowAttention)
    with pytest.raises(ParamsError, match=r"intermediate_tokens: must be false with .* frames"):
        build_model(params, manifest, input="frames")
    with pytest.raises(ValueError, match=r"must be false with model\.query_layers \(1\) > 0"):
        make_params(folder, query_layers=1, intermediate_tokens=True)


def test_more_query_layers_than_blocks_are_not_offered_a_negative_layer(folder: Path) -> None:
    with pytest.raises(ShardError) as error:
        check_layer(
            make_params(folder, query_layers=L + 2), make_manifest(folder, "dinov2", layer=L - 1)
        )
    assert str(error.value).endswith("set model.query_layers: 1")


def test_other_encoder_weights_than_those_of_the_shards_are_refused(folder: Path) -> None:
    manifest = make_manifest(folder, "dinov2", layer=L - 1, sha256="0" * 64)
    with pytest.raises(ShardError, match="other weights"):
        build_model(make_params(folder, query_layers=1), manifest)
    with pytest.raises(ShardError, match="other weights"):
        build_model(make_params(folder), manifest, input="frames")
