"""Decoded clips as shards of patch tokens and VAE latents: shard for shard, clip for clip."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvlm.core.identity import made_by
from fvlm.core.prefetch import Ahead
from fvlm.encoders.frames import EncodeParams, FrameEncoder
from fvlm.shards.build import ShardPlan, write_record
from fvlm.shards.manifest import (
    Array,
    DinoPart,
    EncodedManifest,
    FrameManifest,
    ShardEntry,
    VaePart,
)
from fvlm.shards.plan import Member
from fvlm.shards.read import ShardReader, open_shard
from fvlm.shards.reuse import ShardRecord
from fvlm.shards.write import Sample, write_shard

SIDE_BY_SIDE = 2  # shards: while one is written, the other is computed


@dataclass(frozen=True)
class EncodeRequest:
    """The shard of frames that a shard is made from: where it lies, and what it must hold."""

    source: Path
    entry: ShardEntry


def make_shard(
    request: EncodeRequest,
    path: Path,
    *,
    encoder: FrameEncoder,
    ahead: Ahead,
    on_clip: Callable[[], None] = lambda: None,
) -> ShardRecord:
    """Encode a shard of frames, clip for clip, and write what comes out to a shard.

    ahead: threads of `encoder.ahead()`, which read and encode while this one writes. Frames of
    several clips share a forward, but never of two shards: what a shard holds must not depend on
    which others are made with it. on_clip: called after each clip. This is all that a device does
    for a shard. Raises ShardError where the source is missing or damaged.
    """

    def samples(reader: ShardReader) -> Iterator[Sample]:
        rows, size = range(len(reader)), encoder.batch_clips(reader.fields["frames"].shape[0])
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        for group in ahead.map(lambda group: encode_clips(encoder, reader, group), groups):
            for sample in group:
                yield sample
                on_clip()

    with open_shard(request.source, request.entry) as reader:
        return write_record(path, samples(reader), [])


def encode_clips(encoder: FrameEncoder, reader: ShardReader, rows: range) -> list[Sample]:
    """The samples of these clips: tokens where they are wanted, latents, and decode's metadata."""
    frames = reader.read(rows, ["frames"])["frames"]
    if encoder.params.tokens:
        tokens, latents = encoder.encode(frames)
        arrays = {"tokens.npy": tokens, "latents.npy": latents}
    else:
        arrays = {"latents.npy": encoder.encode_latents(frames)}
    return [
        (
            reader.keys[row],
            {name: array[number] for name, array in arrays.items()}
            | {"json": reader.metadata(row)},
        )
        for number, row in enumerate(rows)
    ]


class Encoding:
    """Makes a shard for each one of the folder `frames`, with one encoder.

    plans: one for each shard of `source`, the manifest of that folder, in its order. A change of
    the recipe or of the source's bytes makes a shard anew.
    """

    def __init__(
        self,
        frames: Path,
        source: FrameManifest,
        manifest: EncodedManifest,
        encoder: FrameEncoder,
        ahead: Ahead,
        on_clip: Callable[[], None] = lambda: None,
    ) -> None:
        recipe = {"made_by": manifest.made_by, "recipe": manifest.recipe}
        self.plans = [
            ShardPlan.of(entry.split, [Member(entry.fingerprint, entry.sha256)], recipe)
            for entry in source.shards
        ]
        planned = zip(self.plans, source.shards, strict=True)
        self._entries = {plan.fingerprint: entry for plan, entry in planned}
        self._frames, self._encoder, self._ahead, self._on_clip = frames, encoder, ahead, on_clip

    def clips(self, plan: ShardPlan) -> int:
        """How many clips the plan's shard will hold."""
        return self._entries[plan.fingerprint].samples

    def make(self, plan: ShardPlan, path: Path) -> ShardRecord:
        """As `build_shards` wants it."""
        entry = self._entries[plan.fingerprint]
        return make_shard(
            EncodeRequest(self._frames / entry.name, entry),
            path,
            encoder=self._encoder,
            ahead=self._ahead,
            on_clip=self._on_clip,
        )


def describe_encoding(
    frames: FrameManifest, params: EncodeParams, encoder: FrameEncoder, sources: dict[str, Any]
) -> EncodedManifest:
    """The manifest to be, without its shards; `sources` as `load_encoder` gives them."""
    stored, _, size, _ = frames.frames.shape
    dino, vae = encoder.dino, encoder.vae
    tokens = [stored, dino.num_tokens(size), dino.width]
    deciding = params.model_dump(exclude={"dino", "vae"})
    weights = {f"{name}_sha256": source["sha256"] for name, source in sources.items()}
    return EncodedManifest(
        stage="encode",
        made_by=made_by(encode_clips, write_shard),
        recipe=deciding | weights | {"device": encoder.device.type},
        tokens=Array(dtype="float16", shape=tokens),
        latents=Array(dtype="float16", shape=[stored, *vae.latent_shape(size)]),
        dino=DinoPart(**sources["dino"]),
        vae=VaePart(**sources["vae"]),
    )
