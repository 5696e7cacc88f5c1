"""`manifest.json` of a stage's output folder: which shards there are, sealed against any change.

Its last field, `manifest_sha256`, covers all others, and its bytes are those that `seal` gives: a
file that was cut or altered in any byte is not read.
"""

import json
from pathlib import Path
from typing import Any

from fvlm.core.errors import FvlmError, ShardError
from fvlm.core.io import atomic_write, hash_json

NAME = "manifest.json"
SEAL = "manifest_sha256"
ENTRY = {"name", "split", "bytes", "sha256", "samples", "sample_crc32"}


def write_manifest(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Write the folder's manifest; returns the document with its seal."""
    sealed = document | {SEAL: hash_json(document)}
    with atomic_write(folder / NAME) as file:
        file.write(_text(sealed))
    return sealed


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a stage's output folder; raises FvlmError when missing or damaged."""
    path = folder / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FvlmError(f"{path} not found; run `dvc repro` to make it") from None
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, name: str) -> dict[str, Any]:
    """The manifest in `data`, without its seal; raises ShardError that calls the file `name`."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ShardError(f"{name} is damaged: {error}; {_remedy(name)}") from None
    shards = document.get("shards") if isinstance(document, dict) else None
    if not isinstance(shards, list) or not all(
        isinstance(entry, dict) and set(entry) >= ENTRY for entry in shards
    ):
        raise ShardError(f"{name} is damaged or of another version; {_remedy(name)}")
    sealed = dict(document)
    if sealed.pop(SEAL, None) != hash_json(sealed) or _text(document) != data:
        raise ShardError(f"{name} is damaged or of another version; {_remedy(name)}")
    return sealed


def _text(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"


def _remedy(name: str) -> str:
    stage = Path(name).parent.name
    return f"run `dvc repro -f -s {stage}`; shards that are whole are not made again"
