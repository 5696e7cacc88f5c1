"""The language model: Llama blocks and the final norm; its output head and tokenizer apart."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerBase,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fvlm.core.errors import ParamsError
from fvlm.core.io import read_json
from fvlm.weights.loading import LOAD_ERRORS, load_pretrained, quiet
from fvlm.weights.resolve import resolve
from fvlm.weights.sources import CONFIG, Provenance, unusable

_UNTRAINED = re.compile(r"untrained:(?P<width>\d+)x(?P<blocks>\d+)")
_WORDS = "<words>"  # stand for a user's in a chat template
_HEAD = 32  # width of an attention head of an untrained trunk


def load_language(
    source: str, *, layers: int = 0, vocabulary: int = 1
) -> tuple[LlamaModel, Provenance]:
    """The first `layers` blocks (0 = all) of a Llama model, float32, in evaluation mode.

    `model(inputs_embeds=[B,S,H], attention_mask=..., use_cache=False).last_hidden_state` is [B,S,H]
    after the final norm; H is `model.config.hidden_size`. Blocks that are left out are not read.
    `untrained:WIDTHxBLOCKS` is a trunk with random weights from torch's generator, small enough for
    control corpora; vocabulary: how many tokens it reads and says, tied. Raises WeightsError when
    the source cannot be loaded, ParamsError when it has fewer blocks.
    """
    if match := _UNTRAINED.fullmatch(source):
        width, blocks = int(match["width"]), _count_layers(layers, int(match["blocks"]), source)
        trunk = _make_untrained(width, blocks, vocabulary)
        return trunk, Provenance(source, revision="", sha256="")
    resolved = resolve(source, kind="language")
    document = read_json(resolved.folder / CONFIG)
    if document.get("model_type") != "llama":
        found = document.get("model_type")
        raise unusable(source, "language", f"model type {found!r} is not supported, only 'llama'")
    if rate := document.get("attention_dropout"):
        # Drawn for whole batches, it would differ with the number of processes.
        raise unusable(source, "language", f"attention_dropout is {rate} in {CONFIG}, must be 0")
    config = LlamaConfig.from_pretrained(resolved.folder, local_files_only=True)
    config.num_hidden_layers = _count_layers(layers, config.num_hidden_layers, source)
    trunk = load_pretrained(LlamaModel, resolved, kind="language", config=config)
    return fuse_norms(trunk), resolved.provenance


def is_untrained(source: str) -> bool:
    """Whether the source is a trunk with random weights."""
    return _UNTRAINED.fullmatch(source) is not None


def load_output(source: str) -> nn.Linear | None:
    """The output head [V,H] of a Llama model, float32; None when it is tied to the embeddings."""
    if is_untrained(source):
        return None
    resolved = resolve(source, kind="language")
    config = LlamaConfig.from_pretrained(resolved.folder, local_files_only=True)
    if config.tie_word_embeddings:
        return None
    config.num_hidden_layers = 0  # no block is read
    whole = load_pretrained(LlamaForCausalLM, resolved, kind="language", config=config)
    head: nn.Linear = whole.lm_head
    return head


def _make_untrained(width: int, blocks: int, vocabulary: int) -> LlamaModel:
    if width % _HEAD or not width or not blocks:
        raise ParamsError(
            f"model.llm: untrained:{width}x{blocks}: the width must be a multiple of {_HEAD}, "
            "and there must be at least one block"
        )
    heads = width // _HEAD
    config = LlamaConfig(
        vocab_size=vocabulary,
        tie_word_embeddings=vocabulary > 1,
        bos_token_id=None,
        eos_token_id=None,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    model: LlamaModel = LlamaModel(config).eval()
    return fuse_norms(model)


def _count_layers(wanted: int, available: int, source: str) -> int:
    if not 0 <= wanted <= available:
        raise ParamsError(
            f"model.llm_layers: must be 0 (all) to {available}, the number of blocks of {source}, "
            f"got {wanted}"
        )
    return wanted or available


def language_from_config(config: dict[str, Any]) -> LlamaModel:
    """The architecture of a trunk with random weights, from its `config.to_diff_dict()`."""
    model: LlamaModel = LlamaModel(LlamaConfig.from_dict(config)).eval()
    return fuse_norms(model)


def causal_states(model: LlamaModel, sequence: Tensor) -> Tensor:
    """States [B,S,H] of a sequence [B,S,H] in which each position sees itself and those before.

    What the model's own forward computes; that one looks for several sequences in a row first, and
    so waits for a GPU in every pass.
    """
    assert model.config._attn_implementation == "sdpa"  # causal where it is given no mask
    places = torch.arange(sequence.shape[1], device=sequence.device)[None]
    phases = model.rotary_emb(sequence, position_ids=places)
    for block in model.layers:
        sequence = block(sequence, position_embeddings=phases)
    states: Tensor = model.norm(sequence)
    return states


class _RMSNorm(nn.RMSNorm):
    """In the type of what it normalises: weights may have been gathered in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def fuse_norms(model: LlamaModel) -> LlamaModel:
    """The model with torch's RMSNorm in the place of its own: one kernel on a GPU, and not six."""
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, LlamaRMSNorm):
                fused = _RMSNorm(norm.weight.shape[0], eps=norm.variance_epsilon)
                fused.weight = norm.weight
                parent.add_module(name, fused.train(norm.training))
    return model


def load_tokenizer(source: str) -> tuple[PreTrainedTokenizerBase, Provenance]:
    """The tokenizer that lies beside the language model's weights."""
    resolved = resolve(source, kind="language")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(resolved.folder, local_files_only=True)
    except LOAD_ERRORS as error:
        raise unusable(source, "language", f"no tokenizer: {error}") from None
    return tokenizer, resolved.provenance


def chat_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What the tokenizer's chat template writes before and behind a user's words, and the header
    that opens the answer; of one without a template the usual words.
    """
    if not tokenizer.chat_template:
        return {"before": "Question: ", "behind": "\n", "header": "Answer: "}
    words = [{"role": "user", "content": _WORDS}]
    turn = str(tokenizer.apply_chat_template(words, tokenize=False))
    asked = str(tokenizer.apply_chat_template(words, tokenize=False, add_generation_prompt=True))
    before, _, behind = turn.partition(_WORDS)
    return {"before": before, "behind": behind, "header": asked.removeprefix(turn)}
