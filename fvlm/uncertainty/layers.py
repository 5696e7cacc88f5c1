"""One kind of transformer block for all families of vision towers.

It holds the stock transformers layer's own submodules under common names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Dinov2Model, DINOv3ViTModel


@dataclass(frozen=True)
class Layer:
    """One pre-norm transformer block. `inner` are the first linear layers of the MLP."""

    norm1: nn.Module
    q: nn.Module
    k: nn.Module
    v: nn.Module
    out: nn.Module
    scale1: nn.Module
    norm2: nn.Module
    inner: tuple[nn.Module, ...]
    join: Callable[..., Tensor]
    last: nn.Module
    scale2: nn.Module


def stock_layers(inner: Any) -> Any:
    """The list of blocks, wherever the family keeps it."""
    if isinstance(inner, DINOv3ViTModel):
        return inner.model.layer
    return inner.encoder.layer if isinstance(inner, Dinov2Model) else inner.encoder.layers


def layer_of(stock: Any) -> Layer:
    """The submodules of a stock block under the common names."""
    mlp = stock.mlp
    activation = getattr(mlp, "act_fn", None) or getattr(mlp, "activation", None)
    activation = activation or mlp.activation_fn
    inner: tuple[nn.Module, ...]
    if hasattr(mlp, "gate_proj"):
        inner, last = (mlp.gate_proj, mlp.up_proj), mlp.down_proj
    elif hasattr(mlp, "up_proj"):
        inner, last = (mlp.up_proj,), mlp.down_proj
    else:
        inner, last = (mlp.fc1,), mlp.fc2

    def join(gate: Tensor, *values: Tensor) -> Tensor:
        joined: Tensor = activation(gate)
        for value in values:
            joined = joined * value
        return joined

    dino = hasattr(stock, "attention")
    attention = stock.attention if dino else stock.self_attn
    return Layer(
        norm1=stock.norm1 if dino else stock.layer_norm1,
        q=attention.q_proj,
        k=attention.k_proj,
        v=attention.v_proj,
        out=attention.o_proj if dino else attention.out_proj,
        scale1=stock.layer_scale1 if dino else nn.Identity(),
        norm2=stock.norm2 if dino else stock.layer_norm2,
        inner=inner,
        join=join,
        last=last,
        scale2=stock.layer_scale2 if dino else nn.Identity(),
    )
