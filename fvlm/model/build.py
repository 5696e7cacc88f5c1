"""Build a foveated model from pretrained parts, or from the description of one."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import nn
from transformers import LlamaModel

from fvlm.clips.batch import Input
from fvlm.clips.tokenizer import (
    AnswerTokenizer,
    CaptionTokenizer,
    Chat,
    Place,
    word_tokenizer,
)
from fvlm.core.document import Document
from fvlm.core.errors import ParamsError, ShardError
from fvlm.core.io import hash_json
from fvlm.encoders.dino import DinoEncoder, EncoderTail, load_dino
from fvlm.model.captions import PREDICTED
from fvlm.model.foveated import FoveatedModel, ModelParams
from fvlm.model.language import (
    chat_of,
    is_untrained,
    language_from_config,
    load_language,
    load_output,
    load_tokenizer,
)
from fvlm.model.query_attention import (
    DeepAttention,
    PooledTokens,
    ShallowAttention,
    patch_grid,
)
from fvlm.shards.manifest import DinoPart, EncodedManifest, Encoder, VaePart
from fvlm.weights.resolve import resolve

FORMAT = 5
M = TypeVar("M", bound=FoveatedModel)


class Provenance(Document):
    """Where the pretrained parts came from."""

    language: Encoder
    dino: DinoPart
    vae: VaePart


class Architecture(Document):
    """Everything but the weights.

    language, encoder: configurations of transformers. token_shape (N,D), latent_shape (C,h,w).
    pooled_tokens: of each frame, in a baseline without queries; 0: one token, by query.
    """

    format: int = FORMAT
    input: Input
    coarse_only: bool
    model: ModelParams
    language: dict[str, Any]
    encoder: dict[str, Any] | None
    token_shape: list[int]
    latent_shape: list[int]
    provenance: Provenance
    pooled_tokens: int = 0


def build_model(
    params: ModelParams,
    manifest: EncodedManifest,
    *,
    input: Input = "features",
    coarse_only: bool = False,
    pooled_tokens: int = 0,
    vocabulary: int = 1,
) -> tuple[FoveatedModel, Architecture]:
    """A model for the shards of this encode manifest, and what describes it.

    For `frames` the encoder of these shards becomes a part of the model; the stored tokens are not
    used, and any `query_layers` fit. `coarse_only` leaves out the fine passes, and so do
    `pooled_tokens` of each frame, which stand in the place of the one that a query brings back.
    vocabulary: tokens of an untrained language model that reads text.

    Raises ShardError when the stored layer does not fit `model.query_layers` or the encoder is not
    that of the shards, ParamsError when a frame has fewer patches than are wanted, WeightsError
    when a pretrained part cannot be found.
    """
    if input == "features":
        check_layer(params, manifest)
    elif params.intermediate_tokens:
        raise ParamsError("model.intermediate_tokens: must be false with train.input: frames")
    check_grid(pooled_tokens, manifest.tokens.shape[1])
    language, source = load_language(params.llm, layers=params.llm_layers, vocabulary=vocabulary)
    encoder = _load_encoder(manifest) if input == "frames" or params.query_layers > 0 else None
    architecture = Architecture(
        input=input,
        coarse_only=coarse_only or pooled_tokens > 0,
        model=params,
        language=language.config.to_diff_dict(),
        encoder=encoder.config_dict if encoder else None,
        token_shape=manifest.tokens.shape[1:],
        latent_shape=manifest.latents.shape[1:],
        provenance=Provenance(
            language=Encoder(**dataclasses.asdict(source)), dino=manifest.dino, vae=manifest.vae
        ),
        pooled_tokens=pooled_tokens,
    )
    tail = encoder.cut(params.query_layers) if encoder else None
    output = load_output(params.llm) if params.text in PREDICTED else None
    model = _assemble(FoveatedModel, architecture, language, encoder, tail, output)
    return model, architecture


def build_tokenizer(params: ModelParams) -> CaptionTokenizer | None:
    """What turns captions into tokens for this model; None for a model without captions.

    Raises WeightsError when there is no tokenizer beside the language model.
    """
    if params.text == "none" or params.text == "answer":
        return None
    tokenizer, _ = load_tokenizer(params.llm)
    return CaptionTokenizer(
        tokenizer.backend_tokenizer, tokenizer.eos_token_id, params.text, params.max_text_tokens
    )


def build_answer_tokenizer(
    params: ModelParams, place: Place, texts: Iterable[str]
) -> AnswerTokenizer:
    """What turns questions and answers into tokens, written as the tokenizer's own chat template.

    texts: all questions and answers of a training, whose words are the vocabulary of an untrained
    language model. Raises WeightsError when there is no tokenizer beside another one.
    """
    if is_untrained(params.llm):
        return word_tokenizer(texts, place)
    tokenizer, _ = load_tokenizer(params.llm)
    chat = Chat(place=place, **chat_of(tokenizer))
    return AnswerTokenizer(tokenizer.backend_tokenizer, tokenizer.eos_token_id, chat)


def _load_encoder(manifest: EncodedManifest) -> DinoEncoder:
    """The encoder that the shards were made with."""
    encoder, found = load_dino(manifest.dino.source, blocks=manifest.dino.blocks)
    if found.sha256 != manifest.dino.sha256:
        raise ShardError(
            f"data/encode was made with other weights of {found.source} than the installed "
            f"ones (sha256 {manifest.dino.sha256[:12]} and {found.sha256[:12]}); "
            "run `dvc repro -f -s encode`"
        )
    return encoder


def weights_behind(
    params: ModelParams,
    manifest: EncodedManifest,
    tokenizer: CaptionTokenizer | AnswerTokenizer | None,
) -> dict[str, str]:
    """Hashes of the pretrained parts that a training starts from.

    Those of the encoders tell which weights the shards were made with.
    """
    language = params.llm
    if not is_untrained(language):
        language = resolve(language, kind="language").provenance.sha256
    return {
        "language": language,
        "tokenizer": hash_json(tokenizer.tokenizer.to_str()) if tokenizer else "",
        "dino": manifest.dino.sha256,
        "vae": manifest.vae.sha256,
    }


def check_layer(params: ModelParams, manifest: EncodedManifest) -> None:
    """The stored hidden state must be the one that enters the last `query_layers` blocks.

    Shallow attention may read that of any block, if `intermediate_tokens` says that it is meant.
    """
    blocks, layer = manifest.dino.blocks, manifest.dino.layer
    if layer + params.query_layers != blocks and not params.intermediate_tokens:
        fitting = blocks - params.query_layers
        raise ShardError(
            f"encode.layer ({layer}) and model.query_layers ({params.query_layers}) do not fit: "
            f"their sum must be the encoder's number of blocks ({blocks}); "
            f"set model.query_layers: {blocks - layer}"
            + (f" or encode.layer: {fitting}" if fitting >= 0 else "")
            + (", or model.intermediate_tokens: true" if params.query_layers == 0 else "")
        )


def check_grid(pooled_tokens: int, tokens: int) -> None:
    """A frame of so many tokens must have a patch for each cell of the pooled grid."""
    wanted, side = math.isqrt(pooled_tokens), patch_grid(tokens)[1]
    if wanted > side:
        raise ParamsError(
            f"train.pooled_tokens: {pooled_tokens} is a grid of {wanted} x {wanted}, and a frame "
            f"has {side} x {side} patches: leave it out, or raise decode.frame_size"
        )


def model_of(architecture: Architecture, model_class: type[M]) -> M:
    """A model of this class with random weights."""
    params = architecture.model
    encoder, tail, k = None, None, params.query_layers
    if architecture.encoder is not None and architecture.input == "frames":
        encoder = DinoEncoder.from_config(architecture.encoder)
        tail = encoder.cut(k)
    elif architecture.encoder is not None and k > 0:
        tail = EncoderTail.from_config(architecture.encoder, k)
    language = language_from_config(architecture.language)
    hidden, vocabulary = language.config.hidden_size, language.config.vocab_size
    untied = params.text in PREDICTED and not language.config.tie_word_embeddings
    output = nn.Linear(hidden, vocabulary, bias=False) if untied else None
    return _assemble(model_class, architecture, language, encoder, tail, output)


def _assemble(
    model_class: type[M],
    architecture: Architecture,
    language: LlamaModel,
    encoder: DinoEncoder | None,
    tail: EncoderTail | None,
    output: nn.Linear | None,
) -> M:
    params = architecture.model
    if params.text == "none":
        # No token id is ever embedded, and the table is half of a small model.
        language.set_input_embeddings(nn.Identity())
    width = architecture.token_shape[1]
    temperature, reads = params.temperature, params.query_reads
    attention: DeepAttention | ShallowAttention | PooledTokens
    if architecture.pooled_tokens:
        attention = PooledTokens(width, architecture.pooled_tokens, tail=tail)
    elif tail:
        attention = DeepAttention(
            tail, role=params.query_role, temperature=temperature, reads=reads
        )
    else:
        attention = ShallowAttention(width, temperature=temperature, reads=reads)
    channels, height, side = architecture.latent_shape
    return model_class(
        language=language,
        attention=attention,
        latent_shape=(channels, height, side),
        fine_iterations=0 if architecture.coarse_only else params.fine_iterations,
        head=params.head,
        head_channels=params.head_channels,
        encoder=encoder if architecture.input == "frames" else None,
        text=params.text,
        output=output,
    )
