"""Build a foveated model from pretrained parts, save it, and load it with one call.

A saved model is a folder of `config.json` and `model.safetensors`, with text also `tokenizer.json`;
nothing else is needed to load it, neither the hub nor the packages that the parts came from.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import LlamaModel

from fvlm.clips.batch import Input
from fvlm.clips.tokenizer import CaptionTokenizer, read_tokenizer
from fvlm.core.errors import CheckpointError, ParamsError, ShardError
from fvlm.core.io import atomic_write, read_json, sha256_file, write_json
from fvlm.core.params import Params, validate_params
from fvlm.encoders.dino import DinoEncoder, EncoderTail, load_dino
from fvlm.model.foveated import FoveatedModel, ModelParams
from fvlm.model.language import (
    language_from_config,
    load_language,
    load_output,
    load_tokenizer,
)
from fvlm.model.query_attention import DeepAttention, ShallowAttention

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
FORMAT = 3


class _Sections(Params):
    """What of a saved config has the form of params.yaml."""

    model: ModelParams


def build_model(
    params: ModelParams,
    manifest: dict[str, Any],
    *,
    input: Input = "features",
    coarse_only: bool = False,
) -> tuple[FoveatedModel, dict[str, Any]]:
    """A model for the shards of this encode manifest, and the config that describes it.

    For `frames` the encoder of these shards becomes a part of the model; the stored tokens are not
    used, and any `query_layers` fit. `coarse_only` leaves out the fine passes.

    Raises ShardError when the stored layer does not fit `model.query_layers` or the encoder is not
    that of the shards, WeightsError when a pretrained part cannot be found.
    """
    if input == "features":
        check_layer(params, manifest)
    elif params.intermediate_tokens:
        raise ParamsError("model.intermediate_tokens: must be false with train.input: frames")
    language, source = load_language(params.llm, layers=params.llm_layers)
    encoder = _load_encoder(manifest) if input == "frames" or params.query_layers > 0 else None
    config: dict[str, Any] = {
        "format": FORMAT,
        "input": input,
        "coarse_only": coarse_only,
        "model": params.model_dump(),
        "language": language.config.to_diff_dict(),
        "encoder": encoder.config_dict if encoder else None,
        "token_shape": manifest["tokens"]["shape"][1:],
        "latent_shape": manifest["latents"]["shape"][1:],
        "provenance": {
            "language": dataclasses.asdict(source),
            "dino": manifest["dino"],
            "vae": manifest["vae"],
        },
    }
    tail = encoder.cut(params.query_layers) if encoder else None
    output = load_output(params.llm) if params.text == "caption" else None
    return _assemble(params, language, encoder, tail, output, config), config


def build_tokenizer(params: ModelParams) -> CaptionTokenizer | None:
    """What turns captions into tokens for this model; None for a model without text.

    Raises WeightsError when there is no tokenizer beside the language model.
    """
    if params.text == "none":
        return None
    tokenizer, _ = load_tokenizer(params.llm)
    return CaptionTokenizer(
        tokenizer.backend_tokenizer, tokenizer.eos_token_id, params.text, params.max_text_tokens
    )


def _load_encoder(manifest: dict[str, Any]) -> DinoEncoder:
    """The encoder that the shards were made with."""
    encoder, found = load_dino(manifest["dino"]["source"], blocks=manifest["dino"]["blocks"])
    if found.sha256 != manifest["dino"]["sha256"]:
        raise ShardError(
            f"data/encode was made with other weights of {found.source} than the installed "
            f"ones (sha256 {manifest['dino']['sha256'][:12]} and {found.sha256[:12]}); "
            "run `dvc repro encode`"
        )
    return encoder


def check_layer(params: ModelParams, manifest: dict[str, Any]) -> None:
    """The stored hidden state must be the one that enters the last `query_layers` blocks.

    Shallow attention may read that of any block, if `intermediate_tokens` says that it is meant.
    """
    blocks, layer = manifest["dino"]["blocks"], manifest["dino"]["layer"]
    if layer + params.query_layers != blocks and not params.intermediate_tokens:
        fitting = blocks - params.query_layers
        raise ShardError(
            f"encode.layer ({layer}) and model.query_layers ({params.query_layers}) do not fit: "
            f"their sum must be the encoder's number of blocks ({blocks}); "
            f"set model.query_layers: {blocks - layer}"
            + (f" or encode.layer: {fitting}" if fitting >= 0 else "")
            + (", or model.intermediate_tokens: true" if params.query_layers == 0 else "")
        )


def save_model(
    weights: Mapping[str, Tensor],
    config: dict[str, Any],
    folder: Path,
    tokenizer: CaptionTokenizer | None = None,
) -> None:
    """Write a model's `state_dict()` and config, each atomically; the config holds its hash.

    A model with text needs its tokenizer too.
    """
    if tokenizer:
        config = {**config, "eos": tokenizer.eos}
        with atomic_write(folder / TOKENIZER) as file:
            file.write(tokenizer.tokenizer.to_str().encode())
    weights = {name: value.contiguous() for name, value in weights.items()}
    with atomic_write(folder / WEIGHTS) as file:
        file.write(save(weights, metadata={"format": "pt"}))
    write_json(folder / CONFIG, {**config, "weights_sha256": sha256_file(folder / WEIGHTS)})


def load_model(folder: str | Path = "models/foveated") -> FoveatedModel:
    """Load a trained model in evaluation mode, float32, on the CPU.

    Raises CheckpointError when the folder holds another format, an incomplete config or damaged
    weights.
    """
    folder = Path(folder)
    params, config = _read_config(folder)
    with _keys_of(folder):
        model, sha256 = _model_from_config(params, config), config["weights_sha256"]
    _load_weights(model, folder / WEIGHTS, sha256=sha256)
    return model.eval()


def load_tokenizer_of(folder: str | Path = "models/foveated") -> CaptionTokenizer | None:
    """What turns captions into tokens for a trained model; None for a model without text.

    Raises CheckpointError as `load_model` does.
    """
    folder = Path(folder)
    params, config = _read_config(folder)
    if params.text == "none":
        return None
    tokenizer = read_tokenizer(folder / TOKENIZER)
    with _keys_of(folder):
        return CaptionTokenizer(tokenizer, config["eos"], params.text, params.max_text_tokens)


def _read_config(folder: Path) -> tuple[ModelParams, dict[str, Any]]:
    config: dict[str, Any] = read_json(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / CONFIG}: format {config.get('format')}, expected {FORMAT}; "
            "run `dvc repro train` to make it anew"
        )
    try:
        return validate_params(_Sections, config, folder / CONFIG).model, config
    except ParamsError as error:
        raise CheckpointError(str(error)) from None


@contextmanager
def _keys_of(folder: Path) -> Iterator[None]:
    """Inside of the block a missing key is one of the folder's config."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{folder / CONFIG}: key {error} is missing") from None


def _model_from_config(params: ModelParams, config: dict[str, Any]) -> FoveatedModel:
    encoder, tail, k = None, None, params.query_layers
    if config["input"] == "frames":
        encoder = DinoEncoder.from_config(config["encoder"])
        tail = encoder.cut(k)
    elif k > 0:
        tail = EncoderTail.from_config(config["encoder"], k)
    language = language_from_config(config["language"])
    hidden, vocabulary = language.config.hidden_size, language.config.vocab_size
    untied = params.text == "caption" and not language.config.tie_word_embeddings
    output = nn.Linear(hidden, vocabulary, bias=False) if untied else None
    return _assemble(params, language, encoder, tail, output, config)


def _assemble(
    params: ModelParams,
    language: LlamaModel,
    encoder: DinoEncoder | None,
    tail: EncoderTail | None,
    output: nn.Linear | None,
    config: dict[str, Any],
) -> FoveatedModel:
    if params.text == "none":
        # No token id is ever embedded, and the table is half of a small model.
        language.set_input_embeddings(nn.Identity())
    width = config["token_shape"][1]
    temperature, reads = params.temperature, params.query_reads
    attention = (
        DeepAttention(tail, role=params.query_role, temperature=temperature, reads=reads)
        if tail
        else ShallowAttention(width, temperature=temperature, reads=reads)
    )
    return FoveatedModel(
        language=language,
        attention=attention,
        latent_shape=tuple(config["latent_shape"]),
        fine_iterations=0 if config["coarse_only"] else params.fine_iterations,
        head_channels=params.head_channels,
        encoder=encoder if config["input"] == "frames" else None,
        text=params.text,
        output=output,
    )


def _load_weights(model: FoveatedModel, path: Path, *, sha256: str) -> None:
    try:
        # safetensors notices a file that was cut short, but no changed byte.
        if sha256_file(path) != sha256:
            raise CheckpointError(
                f"{path} is damaged, or not the file that {CONFIG} was saved with"
            )
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot load the weights: {error}") from None
