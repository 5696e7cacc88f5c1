"""`manifest.json` of a stage's output folder: which shards there are, sealed against any change.

Its last field, `manifest_sha256`, covers all others, and its bytes are those that `seal` gives: a
file that was cut or altered in any byte is not read.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, SkipValidation, ValidationError

from fvlm.core.document import Document
from fvlm.core.errors import FvlmError, ShardError
from fvlm.core.io import atomic_write, hash_json

NAME = "manifest.json"
SEAL = "manifest_sha256"


Name = SkipValidation[str]  # names of files need not be UTF-8, and pydantic refuses these


class ShardEntry(Document):
    """One shard. fingerprint: of all that decides its bytes. sample_crc32: see `ShardFacts`."""

    name: str
    split: str
    fingerprint: str
    bytes: int
    sha256: str
    samples: int
    sample_crc32: str


class Note(Document):
    """Why `clips` clips of a video have no sample. retry: the machine's fault, perhaps."""

    video_id: Name
    reason: str
    message: Name
    retry: bool = False
    clips: int = 1


class ShardNote(Note):
    """A note, and the fingerprint of the shard whose plan the video stands in."""

    shard: str


class Array(Document):
    """A field of every sample: dtype, and shape of one sample."""

    dtype: str
    shape: list[int]


class Manifest(Document):
    """What every stage's manifest has; each adds fields of its own.

    made_by: hash of the code and libraries. recipe: the parameters that decide the bytes.
    """

    model_config = ConfigDict(extra="ignore")

    stage: str
    made_by: str
    recipe: dict[str, Any]
    shards: list[ShardEntry] = Field(default_factory=list)
    quarantined: list[ShardNote] = Field(default_factory=list)


class FrameManifest(Manifest):
    """Of decode: frames uint8 [T,3,S,S]."""

    model_config = ConfigDict(extra="forbid")

    frames: Array


class Encoder(Document):
    """A pretrained part that encoded: as `Provenance`, and what of it was used."""

    source: str
    revision: str
    sha256: str


class DinoPart(Encoder):
    """blocks: of the encoder as it was built; layer: tokens are the state that enters this one."""

    blocks: int
    layer: int


class VaePart(Encoder):
    """scaling_factor: of the latents."""

    scaling_factor: float


class EncodedManifest(Manifest):
    """Of encode: tokens float16 [T,N,D], latents float16 [T,C,h,w].

    With recipe["tokens"] false, samples have no tokens; their shape is told all the same.
    """

    model_config = ConfigDict(extra="forbid")

    tokens: Array
    latents: Array
    dino: DinoPart
    vae: VaePart


M = TypeVar("M", bound=Manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the folder's manifest with its seal."""
    document = manifest.model_dump(mode="json")
    with atomic_write(folder / NAME) as file:
        file.write(_text(document | {SEAL: hash_json(document)}))


def read_manifest(folder: Path, kind: type[M]) -> M:
    """The manifest of a stage's output folder; raises FvlmError when missing or damaged."""
    path = folder / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FvlmError(f"{path} not found; run `dvc repro` to make it") from None
    return parse_manifest(data, str(path), kind)


def parse_manifest(data: bytes, name: str, kind: type[M]) -> M:
    """The manifest in `data`; raises ShardError that calls the file `name`."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ShardError(f"{name} is damaged: {error}; {_remedy(name)}") from None
    sealed = dict(document) if isinstance(document, dict) else {}
    if not sealed or sealed.pop(SEAL, None) != hash_json(sealed) or _text(document) != data:
        raise ShardError(f"{name} is damaged or of another version; {_remedy(name)}")
    try:
        return kind.model_validate(sealed)
    except ValidationError as error:
        raise ShardError(
            f"{name} is of another version: {error.errors()[0]['loc']}: "
            f"{error.errors()[0]['msg']}; {_remedy(name)}"
        ) from None


def _text(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"


def _remedy(name: str) -> str:
    stage = Path(name).parent.name
    return f"run `dvc repro -f -s {stage}`; shards that are whole are not made again"
