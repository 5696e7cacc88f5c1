"""Decoded clips as shards of patch tokens and VAE latents: shard for shard, clip for clip."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fvlm.core.identity import made_by
from fvlm.core.prefetch import Ahead
from fvlm.encoders.frames import EncodeParams, FrameEncoder
from fvlm.shards.build import ShardContent, ShardPlan
from fvlm.shards.manifest import (
    Array,
    DinoPart,
    EncodedManifest,
    FrameManifest,
    Manifest,
    VaePart,
    read_manifest,
)
from fvlm.shards.plan import Member
from fvlm.shards.read import ShardReader, open_shards
from fvlm.shards.write import Sample, write_shard


@dataclass(frozen=True)
class DerivedShard:
    """A planned shard, and the samples of `reader` that it is made from."""

    plan: ShardPlan
    reader: ShardReader
    rows: range

    def groups(self, size: int) -> list[range]:
        """The rows in groups of `size` samples; the last group may be smaller."""
        return [self.rows[start : start + size] for start in range(0, len(self.rows), size)]


@dataclass(frozen=True)
class Encoding:
    """The shards to make, and how: `plans` and `produce` as `build_shards` takes them."""

    shards: Sequence[DerivedShard]
    encoder: FrameEncoder
    ahead: Ahead
    advance: Callable[[], None]

    @property
    def plans(self) -> list[ShardPlan]:
        """One for each shard of frames."""
        return [shard.plan for shard in self.shards]

    def produce(self, missing: Sequence[ShardPlan]) -> Iterator[tuple[ShardPlan, ShardContent]]:
        """Encode ahead across shards, deliver each shard's clips in order."""
        wanted = {plan.fingerprint for plan in missing}
        todo = [shard for shard in self.shards if shard.plan.fingerprint in wanted]
        samples = self._samples(todo)
        for shard in todo:
            yield shard.plan, ShardContent(islice(samples, len(shard.rows)), [])

    def _samples(self, shards: Sequence[DerivedShard]) -> Iterator[Sample]:
        """The samples of these shards in order; reading and encoding run ahead of the writer.

        Frames of several clips share a forward, but never of two shards: what a shard holds must
        not depend on which others are made with it.
        """
        groups = (
            (shard, rows)
            for shard in shards
            for rows in shard.groups(
                self.encoder.batch_clips(shard.reader.fields["frames"].shape[0])
            )
        )
        for samples in self.ahead.map(lambda group: encode_clips(self.encoder, *group), groups):
            for sample in samples:
                self.advance()
                yield sample


@contextmanager
def open_encoding(
    frames: Path, manifest: EncodedManifest, encoder: FrameEncoder, advance: Callable[[], None]
) -> Iterator[Encoding]:
    """Plan the shards that are made from those of the folder `frames`, and keep them open.

    advance: called after each clip.
    """
    recipe = {"made_by": manifest.made_by, "recipe": manifest.recipe}
    with derive_shards(frames, recipe) as shards, encoder.ahead() as ahead:
        yield Encoding(shards, encoder, ahead, advance)


@contextmanager
def derive_shards(folder: Path, recipe: object) -> Iterator[list[DerivedShard]]:
    """One planned shard for each of `folder`, in manifest order, split by split.

    recipe: as for `ShardPlan.of`. A change of it or of the source's bytes makes a shard anew.
    The readers are open inside the block. Raises ShardError for shards missing or damaged.
    """
    entries = read_manifest(folder, Manifest).shards
    derived = []
    with ExitStack() as stack:
        for split in dict.fromkeys(entry.split for entry in entries):
            reader, first = stack.enter_context(open_shards(folder, split=split)), 0
            for entry in entries:
                if entry.split == split:
                    rows = range(first, first + entry.samples)
                    members = [Member(reader.keys[row], entry.sha256) for row in rows]
                    plan = ShardPlan.of(split, members, recipe)
                    derived.append(DerivedShard(plan, reader, rows))
                    first = rows.stop
        yield derived


def encode_clips(encoder: FrameEncoder, shard: DerivedShard, rows: range) -> list[Sample]:
    """The samples of these clips: tokens, latents, and the metadata that decode gave them."""
    reader = shard.reader
    tokens, latents = encoder.encode(reader.read(rows, ["frames"])["frames"])
    return [
        (
            reader.keys[row],
            {
                "tokens.npy": tokens[number],
                "latents.npy": latents[number],
                "json": reader.metadata(row),
            },
        )
        for number, row in enumerate(rows)
    ]


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
