"""The manifest is read whole and unchanged, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.errors import FvlmError, ShardError
from fvlm.shards.manifest import (
    EncodedManifest,
    FrameManifest,
    Manifest,
    ShardEntry,
    ShardNote,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from tests import tiny

DAMAGED = r"manifest\.json is damaged"
SHARD = ShardEntry(
    name="train-000000.tar",
    split="train",
    fingerprint="cd" * 32,
    bytes=10240,
    sha256="ab" * 32,
    samples=2,
    sample_crc32="0123456789abcdef",
)
NOTE = ShardNote(video_id="a.mp4", reason="timeout", message="late", retry=True, shard="cd" * 32)
MANIFEST = Manifest(
    stage="decode",
    made_by="ef" * 10,
    recipe={"size": 16, "ratio": 0.1, "name": "é\udcff"},
    shards=[SHARD],
    quarantined=[NOTE],
)


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    write_manifest(tmp_path / "decode", MANIFEST)
    assert read_manifest(tmp_path / "decode", Manifest) == MANIFEST
    return (tmp_path / "decode" / "manifest.json").read_bytes()


def test_every_truncation_is_noticed_and_named(data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(ShardError, match=DAMAGED):
            parse_manifest(data[:size], "data/decode/manifest.json", Manifest)


@pytest.mark.parametrize("bit", [0x01, 0x04, 0x20, 0x80])
def test_every_changed_byte_is_noticed_and_named(data: bytes, bit: int) -> None:
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= bit
        with pytest.raises(ShardError, match=DAMAGED):
            parse_manifest(bytes(changed), "data/decode/manifest.json", Manifest)


def test_other_documents_are_refused(data: bytes) -> None:
    sealed = json.loads(data)
    unsealed = {name: value for name, value in sealed.items() if name != "manifest_sha256"}
    others: list[Any] = [unsealed, {}, [], None, {"shards": [1]}, {"shards": [{"name": "x"}]}]
    for document in others:
        with pytest.raises(ShardError, match=r"damaged or of another version; run `dvc repro -f"):
            parse_manifest(
                json.dumps(document, indent=2).encode() + b"\n", "a/manifest.json", Manifest
            )
    with pytest.raises(ShardError, match=DAMAGED):  # the same values, written by someone else
        parse_manifest(json.dumps(sealed).encode(), "manifest.json", Manifest)


def test_what_one_stage_adds_is_read_by_its_own_kind_only(tmp_path: Path) -> None:
    manifest = tiny.encoded_manifest([4, 10, 6], [4, 4, 2, 2])
    write_manifest(tmp_path / "encode", manifest)
    assert read_manifest(tmp_path / "encode", EncodedManifest) == manifest
    assert read_manifest(tmp_path / "encode", Manifest).stage == "encode"
    with pytest.raises(ShardError, match=r"another version: .*'frames'.*dvc repro -f -s encode`"):
        read_manifest(tmp_path / "encode", FrameManifest)


def test_a_missing_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FvlmError, match=r"manifest\.json not found; run `dvc repro`"):
        read_manifest(tmp_path, Manifest)
