"""The smallest models of the real classes; every value of their configurations can be set."""

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from ruamel.yaml import YAML
from torch import nn
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaModel

from fvlm.encoders.dino import DinoEncoder
from fvlm.model.foveated import FoveatedModel, ModelParams
from fvlm.model.query_attention import DeepAttention, ShallowAttention


def llama(**values: Any) -> LlamaConfig:
    """One block of width 24 that knows 4 words."""
    sizes = {"vocab_size": 4, "hidden_size": 24, "intermediate_size": 32}
    blocks = {"num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaConfig(**(sizes | blocks | values))


def dinov2(**values: Any) -> Dinov2Model:
    """Three blocks of width 16 for frames of 3 x 3 patches."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2}
    frame = {"image_size": 42, "patch_size": 14}
    return Dinov2Model(Dinov2Config(**(sizes | frame | values)))


def vae(*channels: int) -> AutoencoderKL:
    """4 latent channels, one level of `channels` each; four levels reduce frames by 8."""
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=4,
        norm_num_groups=channels[0] // 2,
    )


def foveated(
    *,
    deep: int = 0,
    iterations: int = 1,
    temperature: float = 0.5,
    language: LlamaConfig | None = None,
    **parts: Any,
) -> FoveatedModel:
    """`deep` blocks of query attention over 16 wide tokens; latents [4,4,4].

    Its head's weights are so large that every input changes the prediction by far more than
    rounding does, as after training.
    """
    attention: ShallowAttention | DeepAttention = ShallowAttention(16, temperature=temperature)
    if deep:
        attention = DeepAttention(DinoEncoder(dinov2()).tail(deep))
    model = FoveatedModel(
        language=LlamaModel(language or llama(num_hidden_layers=2, initializer_range=0.2)),
        attention=attention,
        latent_shape=(4, 4, 4),
        fine_iterations=iterations,
        **parts,
    )
    for name, parameter in model.head.named_parameters():
        if name.endswith("weight"):
            nn.init.kaiming_normal_(parameter)
    return model.eval()


def model_params(llm: str, **changes: Any) -> ModelParams:
    """Of the small model above: one fine pass, shallow queries, no text."""
    values = {
        "llm": llm,
        "llm_layers": 0,
        "query_layers": 0,
        "intermediate_tokens": False,
        "query_role": "token",
        "query_reads": "all",
        "temperature": 1.0,
        "fine_iterations": 1,
        "head_channels": 16,
        "text": "none",
        "max_text_tokens": 8,
    }
    return ModelParams.model_validate(values | changes)


def set_params(folder: Path, values: dict[str, dict[str, Any]]) -> None:
    """Change entries of sections of the folder's params.yaml."""
    yaml = YAML()
    document = yaml.load((folder / "params.yaml").read_text())
    for section, entries in values.items():
        document[section].update(entries)
    yaml.dump(document, folder / "params.yaml")
