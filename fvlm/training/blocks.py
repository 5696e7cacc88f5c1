"""Compile the model's parts, or run its blocks again in the backward pass; both in place.

Blocks are compiled one by one: all blocks of a trunk share one graph, so that a compilation takes
seconds and not minutes, and weights keep their names. The whole graph of a block is demanded: what
cannot be compiled is an error and never runs uncompiled in silence.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fvlm.core.params import Params
from fvlm.model.foveated import FoveatedModel
from fvlm.model.query_attention import DeepAttention

CompileMode = Literal["none", "default", "max-autotune", "reduce-overhead"]
Checkpointing = Literal["none", "encoder", "all"]
# A graph a block is needed where captions stand in front: each block reads its own memory of them.
GRAPHS_PER_BLOCK = 8


class CompileModes(Params):
    """A mode for each part.

    encoder: the patch encoder's blocks and the query attention; language: the language model's
    blocks; head: the prediction head.
    """

    encoder: CompileMode
    language: CompileMode
    head: CompileMode

    @classmethod
    def of(cls, wanted: "CompileMode | CompileModes") -> "CompileModes":
        """The same mode for every part, or the modes themselves."""
        if isinstance(wanted, CompileModes):
            return wanted
        return cls(encoder=wanted, language=wanted, head=wanted)


def compile_parts(
    model: FoveatedModel,
    wanted: CompileMode | CompileModes,
    *,
    backend: str | Callable[..., Any] = "inductor",
) -> None:
    """Compile what holds nearly all of the work; `backend` as of torch.compile.

    Shapes never change in a training, but for the sequences of a model with text: captions differ
    in length.
    """
    modes = CompileModes.of(wanted)
    for part, methods in parts_of(model).items():
        mode = getattr(modes, part)
        if mode == "none":
            continue
        dynamic = None if part == "language" and model.text != "none" else False
        for module, name in methods:
            compiled = torch.compile(
                getattr(module, name), fullgraph=True, dynamic=dynamic, backend=backend, mode=mode
            )
            setattr(module, name, compiled)
    if model.text in ("condition", "answer") and modes.language != "none":
        config: Any = torch._dynamo.config
        wanted_graphs = GRAPHS_PER_BLOCK * len(model.language.layers)
        config.recompile_limit = max(config.recompile_limit, wanted_graphs)
        config.accumulated_recompile_limit = max(
            config.accumulated_recompile_limit, 2 * wanted_graphs
        )


def recompute_blocks(model: FoveatedModel, which: Checkpointing) -> None:
    """Keep only the input of these blocks for the backward pass, in which they run again.

    encoder: those of the patch encoder; all: also those of the language model, and the head. To be
    called after `compile_parts`.
    """
    methods = parts_of(model)
    chosen = [] if which == "none" else _blocks_of_encoder(model)
    if which == "all":
        chosen += methods["language"] + methods["head"]
    for module, name in chosen:
        setattr(module, name, partial(_run_again, getattr(module, name)))


def parts_of(model: FoveatedModel) -> dict[str, list[tuple[nn.Module, str]]]:
    """Modules and the methods of them that are compiled, by part."""
    attention = model.attention
    reads = ["forward", *(["cache_frames"] if isinstance(attention, DeepAttention) else [])]
    layers = model.encoder.layers if model.encoder else ()
    return {
        "encoder": [
            *((block, "forward") for block in layers),
            *((attention, name) for name in reads),
        ],
        "language": [(block, "forward") for block in model.language.layers],
        "head": [(model.head, "encode_previous"), (model.head, "forward")],
    }


def _blocks_of_encoder(model: FoveatedModel) -> list[tuple[nn.Module, str]]:
    blocks = list(model.encoder.layers if model.encoder else ())
    if isinstance(model.attention, DeepAttention):
        blocks += model.attention.tail.blocks
    # A frozen block whose input has no gradient keeps nothing anyway.
    trained = (block for block in blocks if any(p.requires_grad for p in block.parameters()))
    return [(block, "forward") for block in trained]


def _run_again(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
    # Nothing in a block is random.
    return checkpoint(method, *args, use_reentrant=False, preserve_rng_state=False, **options)
