"""A vision tower as a list of steps between its linear layers, to run a part of it many times.

A step takes the residual stream and the outputs of some linear layers, with or without dropout,
and computes the next ones. Everything before the first dropout is computed once for a frame.
In towers that give the CLS token as embedding, the last block computes its other tokens only as
far as keys and values: nothing else of them reaches the embedding.

`Tower.check` and tests hold all of it equal to the stock model.

Axes: R frames or rows, N tokens, D width, d width of one head.
"""

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Model,
    DINOv3ViTModel,
    SiglipVisionModel,
)

from fvlm.core.errors import FvlmError, WeightsError
from fvlm.core.io import read_json, sha256_file
from fvlm.encoders.dino import EncoderBlock, Positions
from fvlm.uncertainty.layers import Layer, layer_of, stock_layers
from fvlm.uncertainty.pixels import Preparation, read_preparation
from fvlm.weights.loading import load_pretrained
from fvlm.weights.resolve import resolve
from fvlm.weights.sources import CONFIG, Provenance, Resolved, unusable

Tensors = tuple[Tensor, ...]
Drop = Callable[[str, Tensor], Tensor]  # name of a linear layer and its output -> what goes on
TOLERANCE = 1e-3  # of the largest value of an embedding, between two ways to compute it

_MODELS: dict[str, Any] = {
    "dinov2": Dinov2Model,
    "dinov3_vit": DINOv3ViTModel,
    "clip": CLIPVisionModelWithProjection,
    "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}


@dataclass(frozen=True)
class State:
    """Where a forward stands: before `step`, with the outputs of its linear layers undropped."""

    step: int
    residual: Tensor  # [R,N,D]; [R,S,S,3] pixels before the first step
    outputs: Tensors
    positions: Positions


@dataclass(frozen=True)
class Step:
    """`run(residual, outputs of the layers named, positions)` -> the same for the next step."""

    names: tuple[str, ...]
    run: Callable[[Tensor, Tensors, Positions], tuple[Tensor, Tensors]]


class Tower(nn.Module):
    """Frames to embeddings [R,D]; `steps`, `sites` (names of layers that can drop).

    `identity` is what decides the computation beside weights and code, as a JSON value.
    """

    def __init__(self, model: Any, preparation: Preparation, config_sha256: str) -> None:
        """`model` is a stock vision model; its weights are shared, not copied."""
        super().__init__()
        self.model, self.preparation = model, preparation
        self.identity = {"config": config_sha256, "preparation": asdict(preparation)}
        # CLIP with its projection wraps the tower; DINOv3 holds its layers one level deeper.
        self._inner: Any = getattr(model, "vision_model", model)
        self.heads: int = self._inner.config.num_attention_heads
        self._names = {module: name for name, module in model.named_modules()}
        self._pools_cls = not isinstance(self._inner, SiglipVisionModel)
        self.layers = [layer_of(layer) for layer in stock_layers(self._inner)]
        self.steps = self._plan()
        self.sites = tuple(name for step in self.steps for name in step.names)

    def compile_steps(
        self, sites: Collection[str], *, backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        """Compile what comes behind the first of `sites`, step by step; `backend` as of torch's.

        The whole graph of a step is demanded: what cannot be compiled is an error.
        """
        config: Any = torch._dynamo.config
        # Blocks share their code; each has graphs for a single row, for the first number, for any.
        config.recompile_limit = max(config.recompile_limit, 4 * len(self.steps))
        first = self._first(sites)
        self.steps[first:] = [
            replace(step, run=torch.compile(step.run, fullgraph=True, backend=backend))
            for step in self.steps[first:]
        ]

    def stock(self, frames: Tensor) -> Tensor:
        """Embeddings [R,D] of frames uint8 [R,3,S,S], by the stock model."""
        output = self.model(pixel_values=self.preparation(frames))
        embeddings: Tensor = output.get("image_embeds", output.get("pooler_output"))
        return embeddings

    def prefix(self, frames: Tensor, sites: Collection[str]) -> State:
        """Compute frames uint8 [R,3,S,S] up to the first step that gets a dropped value."""
        pixels = self.preparation(frames)
        rotary = getattr(self._inner, "rope_embeddings", None)
        state = State(0, pixels, (), rotary(pixels) if rotary else None)
        return self._advance(state, self._first(sites), _keep)

    def suffix(self, state: State, drop: Drop) -> Tensor:
        """Embeddings [R,D]; `drop` gets every linear output from here on and may change it."""
        return self._advance(state, len(self.steps), drop).residual

    def check(self, frames: Tensor) -> Tensor:
        """Embeddings [R,D] of frames, computed in steps without dropout.

        Raises FvlmError when they are not what the stock model gives: then this module
        misunderstands the installed version of transformers.
        """
        embeddings = self.suffix(self.prefix(frames, ()), _keep)
        expected = self.stock(frames)
        difference = float((embeddings - expected).abs().max())
        if not difference <= TOLERANCE * float(expected.abs().max()):
            raise FvlmError(
                f"the tower in steps differs by {difference:.2g} from {type(self.model).__name__}"
            )
        return embeddings

    def _first(self, sites: Collection[str]) -> int:
        """The first step that gets a value of one of `sites`; behind the last one where none is."""
        steps = (number for number, step in enumerate(self.steps) if {*step.names} & {*sites})
        return next(steps, len(self.steps))

    def _advance(self, state: State, stop: int, drop: Drop) -> State:
        residual, outputs = state.residual, state.outputs
        for step in self.steps[state.step : stop]:
            dropped = tuple(
                drop(name, value) for name, value in zip(step.names, outputs, strict=True)
            )
            residual, outputs = step.run(residual, dropped, state.positions)
        return State(stop, residual, outputs, state.positions)

    def _plan(self) -> list[Step]:
        steps = [Step((), self._embed)]
        for number, layer in enumerate(self.layers):
            qkv = (layer.q, layer.k, layer.v)
            final = number + 1 == len(self.layers)
            steps += [
                Step(self._name(*qkv), self._attend(layer)),
                Step(self._name(layer.out), _enter_mlp(layer)),
                Step(self._name(*layer.inner), _leave_mlp(layer)),
                Step(self._name(layer.last), self._pool(layer) if final else self._next(number)),
            ]
        head = getattr(self._inner, "head", None)
        if head is not None:
            steps.append(Step(self._name(head.mlp.fc1), _leave_head(head)))
            steps.append(Step(self._name(head.mlp.fc2), _sum_head))
        elif hasattr(self.model, "visual_projection"):
            steps.append(Step(self._name(self.model.visual_projection), _projected))
        return steps

    def _name(self, *modules: nn.Module) -> tuple[str, ...]:
        return tuple(self._names[module] for module in modules)

    def _embed(self, pixels: Tensor, _: Tensors, __: Positions) -> tuple[Tensor, Tensors]:
        tokens = self._inner.embeddings(pixels)
        if hasattr(self._inner, "pre_layrnorm"):  # its name in transformers
            tokens = self._inner.pre_layrnorm(tokens)
        return self._enter(0, tokens)

    def _enter(self, number: int, x: Tensor) -> tuple[Tensor, Tensors]:
        """Queries, keys and values of a block, before they are split into heads."""
        layer, normed = self.layers[number], self.layers[number].norm1(x)
        asking = normed
        if self._pools_cls and number + 1 == len(self.layers):
            x, asking = x[:, :1], normed[:, :1]
        return x, (layer.q(asking), layer.k(normed), layer.v(normed))

    def _attend(self, layer: Layer) -> Any:
        def run(x: Tensor, qkv: Tensors, positions: Positions) -> tuple[Tensor, Tensors]:
            query, key, value = (self._split(part) for part in qkv)
            if query.shape[2] > 1:  # CLS alone has no position
                query = EncoderBlock.rotate(query, positions)
            key = EncoderBlock.rotate(key, positions)
            attended = F.scaled_dot_product_attention(query, key, value)
            return x, (layer.out(attended.transpose(1, 2).flatten(2)),)

        return run

    def _next(self, number: int) -> Any:
        def run(x: Tensor, outputs: Tensors, _: Positions) -> tuple[Tensor, Tensors]:
            return self._enter(number + 1, x + self.layers[number].scale2(outputs[0]))

        return run

    def _pool(self, layer: Layer) -> Any:
        """From the last block to the embedding, or to the next linear layer on the way."""

        def run(x: Tensor, outputs: Tensors, _: Positions) -> tuple[Tensor, Tensors]:
            inner = self._inner
            x = x + layer.scale2(outputs[0])
            norm = next(
                getattr(inner, name)
                for name in ("layernorm", "norm", "post_layernorm")
                if hasattr(inner, name)
            )
            x = norm(x if not self._pools_cls else x[:, :1])
            if getattr(inner, "head", None) is not None:
                return _enter_head(inner.head, x)
            if hasattr(self.model, "visual_projection"):
                return x, (self.model.visual_projection(x),)
            return x[:, 0], ()

        return run

    def _split(self, x: Tensor) -> Tensor:
        """[R,N,D] -> [R,heads,N,d]."""
        R, N, D = x.shape
        return x.view(R, N, self.heads, D // self.heads).transpose(1, 2)


def load_tower(source: str) -> tuple[Tower, Provenance]:
    """A DINOv2, DINOv3, CLIP, SigLIP or fixed-resolution SigLIP2 vision model, float32.

    Raises WeightsError when the source cannot be loaded.
    """
    resolved = resolve(source, kind="tower")
    config = read_json(resolved.folder / CONFIG)
    model = load_pretrained(tower_class(source, config), resolved, kind="tower")
    if isinstance(model, SiglipVisionModel) and not model.use_head:
        raise unusable(source, "tower", "it has no pooling head, so it gives no embedding")
    tower = Tower(model, _preparation(model, resolved), sha256_file(resolved.folder / CONFIG))
    return tower.eval(), resolved.provenance


def tower_class(source: str, config: dict[str, Any]) -> Any:
    """The model's class; a CLIP tower saved alone may or may not have its projection."""
    found = config.get("model_type")
    if found not in _MODELS:
        problem = f"model type {found!r} is not supported, only {', '.join(_MODELS)}"
        raise unusable(source, "tower", problem)
    if "CLIPVisionModelWithProjection" in (config.get("architectures") or ()):  # may be null
        return CLIPVisionModelWithProjection
    model_class: Any = _MODELS[config["model_type"]]
    return model_class


def _preparation(model: Any, resolved: Resolved) -> Preparation:
    config = model.config
    if any(getattr(config, name, 0) for name in ("attention_dropout", "drop_path_rate")):
        raise WeightsError(f"{resolved.folder}/{CONFIG}: dropout of its own must be 0")
    return read_preparation(resolved, size=frame_size_of(model), patch=config.patch_size)


def frame_size_of(model: Any) -> int | None:
    """The one size of frames, in pixels, that the model takes; None: any, its positions fit."""
    free = isinstance(model, Dinov2Model | DINOv3ViTModel)
    return None if free else int(model.config.image_size)


def _enter_mlp(layer: Layer) -> Any:
    def run(x: Tensor, outputs: Tensors, _: Positions) -> tuple[Tensor, Tensors]:
        x = x + layer.scale1(outputs[0])
        normed = layer.norm2(x)
        return x, tuple(linear(normed) for linear in layer.inner)

    return run


def _leave_mlp(layer: Layer) -> Any:
    def run(x: Tensor, outputs: Tensors, _: Positions) -> tuple[Tensor, Tensors]:
        return x, (layer.last(layer.join(*outputs)),)

    return run


def _enter_head(head: Any, x: Tensor) -> tuple[Tensor, Tensors]:
    """SigLIP's pooling: one learned query over all tokens, then an MLP."""
    probe = head.probe.expand(len(x), -1, -1)
    pooled = head.attention(probe, x, x, need_weights=False)[0]
    return pooled, (head.mlp.fc1(head.layernorm(pooled)),)


def _leave_head(head: Any) -> Any:
    def run(x: Tensor, outputs: Tensors, _: Positions) -> tuple[Tensor, Tensors]:
        return x, (head.mlp.fc2(head.mlp.activation_fn(outputs[0])),)

    return run


def _sum_head(x: Tensor, outputs: Tensors, _: Positions) -> tuple[Tensor, Tensors]:
    return (x + outputs[0])[:, 0], ()


def _projected(_: Tensor, outputs: Tensors, __: Positions) -> tuple[Tensor, Tensors]:
    return outputs[0][:, 0], ()


def _keep(_: str, value: Tensor) -> Tensor:
    return value
