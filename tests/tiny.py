"""The smallest models of the real classes, every value of whose configurations can be set, and
shards for them.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from ruamel.yaml import YAML
from torch import nn
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaModel

from fvlm.clips.batch import Input
from fvlm.encoders.dino import DinoEncoder
from fvlm.model import saved
from fvlm.model.build import Architecture, Provenance
from fvlm.model.foveated import FoveatedModel, ModelParams
from fvlm.model.query_attention import DeepAttention, PooledTokens, ShallowAttention
from fvlm.shards.manifest import (
    Array,
    DinoPart,
    EncodedManifest,
    Encoder,
    FrameManifest,
    M,
    ShardEntry,
    VaePart,
    write_manifest,
)
from fvlm.shards.write import Sample, write_shard


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
    pooled: int = 0,
    language: LlamaConfig | None = None,
    **parts: Any,
) -> FoveatedModel:
    """`deep` blocks of query attention over 16 wide tokens; latents [4,4,4].

    Its head's weights are so large that every input changes the prediction by far more than
    rounding does, as after training.
    """
    attention: ShallowAttention | DeepAttention | PooledTokens
    attention = ShallowAttention(16, temperature=temperature)
    tail = DinoEncoder(dinov2()).tail(deep) if deep else None
    if pooled:
        attention = PooledTokens(16, pooled, tail=tail)
    elif tail:
        attention = DeepAttention(tail)
    model = FoveatedModel(
        language=LlamaModel(language or llama(num_hidden_layers=2, initializer_range=0.2)),
        attention=attention,
        latent_shape=(4, 4, 4),
        fine_iterations=0 if pooled else iterations,
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


def architecture(*, input: Input = "features", blocks: int = 1, **params: Any) -> Architecture:
    """Of the small model above for tokens [4,10,16] and latents [4,4,5,5]."""
    manifest = encoded_manifest((4, 10, 16), (4, 4, 5, 5))
    return Architecture(
        input=input,
        coarse_only=False,
        model=model_params("llm", **params),
        language=llama(
            num_hidden_layers=blocks, vocab_size=8, initializer_range=0.2
        ).to_diff_dict(),
        encoder=DinoEncoder(dinov2()).config_dict,
        token_shape=manifest.tokens.shape[1:],
        latent_shape=manifest.latents.shape[1:],
        provenance=Provenance(
            language=Encoder(source="llm", revision="", sha256=""),
            dino=manifest.dino,
            vae=manifest.vae,
        ),
    )


def save_model(
    model: FoveatedModel,
    architecture: Architecture,
    folder: Path,
    *,
    seed: int = 0,
    lambda_coarse: float = 1.0,
    frame_size: int = 40,
    tokenizer: saved.Tokenizer | None = None,
) -> None:
    """As a training leaves it."""
    saved.save_model(
        model.state_dict(),
        architecture,
        folder,
        preprocessing=saved.Preprocessing(frame_size=frame_size, num_frames=4),
        seed=seed,
        lambda_coarse=lambda_coarse,
        training="tiny",
        trained_by="tiny",
        tokenizer=tokenizer,
    )


def frame_manifest(*shape: int) -> FrameManifest:
    """Of clips of this shape: T,3,S,S."""
    frames = Array(dtype="uint8", shape=list(shape))
    return FrameManifest(stage="decode", made_by="tiny", recipe={}, frames=frames)


def encoded_manifest(
    tokens: Sequence[int],
    latents: Sequence[int],
    *,
    dino: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
) -> EncodedManifest:
    """Of clips of these shapes, [T,N,D] and [T,C,h,w]; of an encoder of two blocks."""
    source: dict[str, Any] = {"source": "assets/tiny", "revision": "", "sha256": "0" * 64}
    return EncodedManifest(
        stage="encode",
        made_by="tiny",
        recipe={},
        tokens=Array(dtype="float16", shape=list(tokens)),
        latents=Array(dtype="float16", shape=list(latents)),
        dino=DinoPart(**source | {"blocks": 2, "layer": 2} | (dino or {})),
        vae=VaePart(**source | {"scaling_factor": 0.5} | (vae or {})),
    )


def write_shards(folder: Path, shards: Mapping[str, Iterable[Sample]], manifest: M) -> M:
    """Shards, by names such as `train-000000.tar`, and the manifest, which is returned."""
    entries = []
    for name, samples in shards.items():
        facts = write_shard(folder / name, samples).model_dump(exclude={"md5"})
        entries.append(ShardEntry(name=name, split=name.split("-")[0], fingerprint=name, **facts))
    manifest = manifest.model_copy(update={"shards": entries})
    write_manifest(folder, manifest)
    return manifest


def set_params(folder: Path, values: dict[str, dict[str, Any]]) -> None:
    """Change entries of sections of the folder's params.yaml."""
    yaml = YAML()
    document = yaml.load((folder / "params.yaml").read_text())
    for section, entries in values.items():
        document[section].update(entries)
    yaml.dump(document, folder / "params.yaml")
