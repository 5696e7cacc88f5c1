"""The patch encoder: DINOv2 or DINOv3 ViT, block by block, and its last blocks as their own module.

One `EncoderBlock` serves both families: it holds the stock transformers layer's own submodules
under common names, so that the query attention can run one more token through it. Tests hold all
of it equal to the stock models.

No dropout, drop path or position augmentation, also in training mode: a frame's keys and values
must not depend on chance. Configurations with dropout or drop path are refused.

Axes: B frames, S pixels, N tokens (CLS, registers, patches), D width, d width of one head.
"""

import math
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTLayer

from fvlm.core.errors import ParamsError, WeightsError
from fvlm.core.io import read_json
from fvlm.weights.loading import load_pretrained
from fvlm.weights.resolve import resolve
from fvlm.weights.sources import CONFIG, Provenance, unusable

Config = Dinov2Config | DINOv3ViTConfig
Positions = tuple[Tensor, Tensor] | None

_CONFIGS: dict[str, type[Config]] = {"dinov2": Dinov2Config, "dinov3_vit": DINOv3ViTConfig}
_MODELS: dict[str, Any] = {"dinov2": Dinov2Model, "dinov3_vit": DINOv3ViTModel}
# Of ImageNet, for pixels in [0, 1]: both families were trained with them.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EncoderBlock(nn.Module):
    """One pre-norm transformer block: x + scale1(out(attention(norm1(x)))), then the same with mlp.

    `q`, `k`, `v`, `out` are linear [..,D] -> [..,D]; `scale1`, `scale2` multiply by LayerScale.
    """

    def __init__(self, layer: Any, num_heads: int) -> None:
        """`layer` is a Dinov2Layer or DINOv3ViTLayer; its weights are shared, not copied."""
        super().__init__()
        self.num_heads = num_heads
        self.norm1: nn.Module = layer.norm1
        self.q: nn.Module = layer.attention.q_proj
        self.k: nn.Module = layer.attention.k_proj
        self.v: nn.Module = layer.attention.v_proj
        self.out: nn.Module = layer.attention.o_proj
        self.scale1: nn.Module = layer.layer_scale1
        self.norm2: nn.Module = layer.norm2
        self.mlp: nn.Module = layer.mlp
        self.scale2: nn.Module = layer.layer_scale2

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        """Tokens [B,N,D] -> [B,N,D], as the stock layer."""
        normed = self.norm1(x)
        key, value = self._project(normed, positions)
        query = self.rotate(self.split_heads(self.q(normed)), positions)
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.scale1(self.out(attended.transpose(1, 2).flatten(2)))
        moved: Tensor = x + self.scale2(self.mlp(self.norm2(x)))
        return moved

    def keys_values(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """Tokens [B,N,D] -> keys (rotated) and values, each [B,heads,N,d]."""
        return self._project(self.norm1(x), positions)

    def _project(self, normed: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        key = self.rotate(self.split_heads(self.k(normed)), positions)
        return key, self.split_heads(self.v(normed))

    def split_heads(self, x: Tensor) -> Tensor:
        """[B,N,D] -> [B,heads,N,d]."""
        B, N, D = x.shape
        return x.view(B, N, self.num_heads, D // self.num_heads).transpose(1, 2)

    @staticmethod
    def rotate(x: Tensor, positions: Positions) -> Tensor:
        """Turn queries or keys [B,heads,N,d] by the rotary phases of their patches.

        The patches are the last tokens; CLS and registers before them have no position. Without
        phases (DINOv2) nothing changes.
        """
        if positions is None:
            return x
        cos, sin = positions
        prefix, patches = x.split((x.shape[-2] - cos.shape[-2], cos.shape[-2]), dim=-2)
        first, second = patches.chunk(2, dim=-1)
        turned = patches * cos + torch.cat((-second, first), dim=-1) * sin
        return torch.cat((prefix, turned.to(x.dtype)), dim=-2)


class EncoderTail(nn.Module):
    """The last k blocks and the final norm, for tokens that were stored before these blocks.

    Its state holds these weights only. `config_dict` (JSON) and k rebuild it with `from_config`.
    """

    def __init__(self, blocks: list[nn.Module], final_norm: nn.Module, config: Config) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.config = config
        self.config_dict: dict[str, Any] = _json_config(config)
        self.width, self.heads = config.hidden_size, config.num_attention_heads
        self.registers = _count_registers(config)

    @classmethod
    def from_config(cls, config_dict: dict[str, Any], k: int) -> "EncoderTail":
        """The architecture with random weights, to be filled by `load_state_dict`."""
        config = _CONFIGS[config_dict["model_type"]].from_dict(config_dict)
        _check_config(config)
        _check_depth(k, config.num_hidden_layers)
        layer: Any = Dinov2Layer if isinstance(config, Dinov2Config) else DINOv3ViTLayer
        heads = config.num_attention_heads
        blocks: list[nn.Module] = [EncoderBlock(layer(config), heads) for _ in range(k)]
        return cls(blocks, nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps), config)

    def forward_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens [B,N,D] entering the first of these blocks -> final tokens [B,N,D]."""
        positions = self.positions(tokens)
        for block in self.blocks:
            tokens = block(tokens, positions)
        final: Tensor = self.final_norm(tokens)
        return final

    def cache_frames(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Tokens [B,N,D] -> keys and values [B,heads,N,d] of every block, free of any query."""
        positions = self.positions(tokens)
        cache = []
        for number, block in enumerate(self.blocks, start=1):
            cache.append(cast(EncoderBlock, block).keys_values(tokens, positions))
            if number < len(self.blocks):
                tokens = block(tokens, positions)
        return cache

    def positions(self, tokens: Tensor) -> Positions:
        """Rotary phases for the tokens [B,N,D] of square frames."""
        patches = tokens.shape[-2] - 1 - self.registers
        side = math.isqrt(max(patches, 0))
        if side == 0 or side * side != patches:
            raise WeightsError(
                f"{tokens.shape[-2]} tokens are not CLS, {self.registers} registers and the "
                "patches of a square frame: they come from another encoder"
            )
        return rotary_phases(self.config, side, side, device=tokens.device)


class DinoEncoder(nn.Module):
    """Frames to patch tokens; `blocks` (L), `width` (D), `heads`, `registers`, `patch_size`."""

    def __init__(self, model: Any) -> None:
        """`model` is a Dinov2Model or DINOv3ViTModel; its weights are shared, not copied."""
        super().__init__()
        config: Config = model.config
        _check_config(config)
        dinov2 = isinstance(model, Dinov2Model)
        layers = model.encoder.layer if dinov2 else model.model.layer
        self.config = config
        self.embeddings: nn.Module = model.embeddings
        self.layers = nn.ModuleList(
            EncoderBlock(layer, config.num_attention_heads) for layer in layers
        )
        self.final_norm: nn.Module = model.layernorm if dinov2 else model.norm
        self.blocks, self.width = config.num_hidden_layers, config.hidden_size
        self.heads, self.registers = config.num_attention_heads, _count_registers(config)
        self.patch_size = _patch_size(config)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

    @classmethod
    def from_config(cls, config_dict: dict[str, Any]) -> "DinoEncoder":
        """The architecture with random weights, to be filled by `load_state_dict`."""
        family = config_dict["model_type"]
        return cls(_MODELS[family](_CONFIGS[family].from_dict(config_dict)))

    @property
    def config_dict(self) -> dict[str, Any]:
        """The configuration (JSON) that `from_config` takes."""
        return _json_config(self.config)

    def num_tokens(self, size: int) -> int:
        """N for frames of `size` pixels; pixels beyond the last whole patch are not seen.

        Raises ParamsError when a frame is smaller than one patch.
        """
        if size < self.patch_size:
            raise ParamsError(
                f"decode.frame_size: must be at least {self.patch_size}, one patch of the encoder "
                f"of encode.dino, got {size}"
            )
        return 1 + self.registers + (size // self.patch_size) ** 2

    def check_layer(self, layer: int) -> None:
        """Raise ParamsError when there is no hidden state of this number."""
        if not 0 <= layer <= self.blocks:
            raise ParamsError(
                f"encode.layer: must be 0 to {self.blocks}, the encoder's number of blocks, "
                f"got {layer}"
            )

    def forward(self, frames: Tensor, *, layer: int) -> Tensor:
        """Frames uint8 [B,3,S,S] -> tokens [B,N,D] entering block `layer`, counted from 0.

        `layer` = number of blocks gives the final tokens, after the final norm. Later blocks are
        not computed.
        """
        self.check_layer(layer)
        tokens: Tensor = self.embeddings(self._normalise(frames))
        side = frames.shape[-1] // self.patch_size
        positions = rotary_phases(self.config, side, side, device=frames.device)
        for block in self.layers[:layer]:
            tokens = block(tokens, positions)
        return self.final_norm(tokens) if layer == self.blocks else tokens

    def keep_first(self, blocks: int) -> None:
        """Forget all later blocks; the final norm then follows the last one that is kept."""
        del self.layers[blocks:]
        self.config = deepcopy(self.config)
        self.config.num_hidden_layers = self.blocks = blocks

    def tail(self, k: int) -> EncoderTail:
        """The last k blocks (1 to L) and the final norm; weights are shared, not copied."""
        _check_depth(k, self.blocks)
        return EncoderTail(list(self.layers[-k:]), self.final_norm, self.config)

    def cut(self, k: int) -> EncoderTail | None:
        """Hand over the last k blocks (0 to L) and keep what computes the tokens entering them.

        With k > 0 the final norm goes too, and `forward` can give no later layer than L - k. The
        two halves share no weight. None for k = 0.
        """
        if k == 0:
            return None
        tail = self.tail(k)
        del self.layers[self.blocks - k :]
        self.final_norm = nn.Identity()
        return tail

    def _normalise(self, frames: Tensor) -> Tensor:
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            raise TypeError(f"expected uint8 [B,3,S,S], got {frames.dtype} {list(frames.shape)}")
        if frames.shape[2] != frames.shape[3]:
            raise TypeError(f"expected square frames, got {frames.shape[2]}x{frames.shape[3]}")
        self.num_tokens(frames.shape[-1])
        # In float32 whatever the weights' type: the embedding casts the result.
        mean, std = self.get_buffer("mean").float(), self.get_buffer("std").float()
        return (frames.float() / 255 - mean) / std


def load_dino(source: str, *, blocks: int = 0) -> tuple[DinoEncoder, Provenance]:
    """The first `blocks` (0 = all) of a Dinov2Model or DINOv3ViTModel in transformers' format.

    float32, in evaluation mode. Raises WeightsError when the source cannot be loaded, ParamsError
    when it has fewer blocks.
    """
    resolved = resolve(source, kind="dino")
    found = read_json(resolved.folder / CONFIG).get("model_type")
    if found not in _MODELS:
        problem = f"model type {found!r} is not supported, only {' and '.join(_MODELS)}"
        raise unusable(source, "dino", problem)
    encoder = DinoEncoder(load_pretrained(_MODELS[found], resolved, kind="dino"))
    if blocks > encoder.blocks:
        raise ParamsError(
            f"encode.dino_layers: must be 0 (all) to {encoder.blocks}, the number of blocks of "
            f"{source}, got {blocks}"
        )
    if blocks:
        encoder.keep_first(blocks)
    return encoder.eval(), resolved.provenance


def rotary_phases(config: Config, height: int, width: int, *, device: torch.device) -> Positions:
    """Cosine and sine float32 [height*width, d] for a grid of patches; None for DINOv2.

    Patch centres in [-1, 1], d/4 frequencies on each axis (Siméoni et al., "DINOv3", 2025).
    """
    if isinstance(config, Dinov2Config):
        return None
    d = config.hidden_size // config.num_attention_heads
    period = torch.arange(0, 1, 4 / d, device=device)
    frequencies = 1 / config.rope_theta**period
    rows, columns = (
        2 * (torch.arange(0.5, count, device=device) / count) - 1 for count in (height, width)
    )
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * centres[:, :, None] * frequencies).flatten(1).tile(2)
    return angles.cos(), angles.sin()


def _check_config(config: Config) -> None:
    """Refuse what this module would silently compute otherwise than the stock model."""
    rates = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
    for name in (*rates, "attention_dropout"):
        if getattr(config, name, 0.0) > 0:
            raise WeightsError(
                f"{name}: {getattr(config, name)} in the encoder's {CONFIG}: must be 0, frames are "
                "encoded without randomness"
            )
    if config.num_channels != 3:
        raise WeightsError(f"num_channels: {config.num_channels} in {CONFIG}: frames have 3")
    _patch_size(config)


def _check_depth(k: int, blocks: int) -> None:
    if not 1 <= k <= blocks:
        raise ParamsError(
            f"model.query_layers: must be 0 (shallow) to {blocks}, the encoder's number of blocks, "
            f"got {k}"
        )


def _patch_size(config: Config) -> int:
    size = config.patch_size
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise WeightsError(f"patch_size: {size} in {CONFIG}: patches must be square")
    return int(sides.pop())


def _count_registers(config: Config) -> int:
    return 0 if isinstance(config, Dinov2Config) else config.num_register_tokens


def _json_config(config: Config) -> dict[str, Any]:
    """The configuration without what depends on the installed version or on where it came from."""
    volatile = {"transformers_version", "_name_or_path", "architectures", "dtype"}
    follows = {"out_features", "out_indices", "stage_names"}  # from the number of blocks
    return {key: value for key, value in config.to_dict().items() if key not in volatile | follows}
