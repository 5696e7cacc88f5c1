"""Encode decoded clips into shards of patch tokens and VAE latents.

Reads   data/decode/, params.yaml:encode
Writes  data/encode/, metrics/encode.json
"""

import time
from collections.abc import Iterator, Sequence
from itertools import islice

from fvlm.core.device import default_device, peak_memory_gib
from fvlm.core.io import write_json
from fvlm.core.params import Params, load_params
from fvlm.core.prefetch import Ahead
from fvlm.core.progress import Progress
from fvlm.core.stage import run
from fvlm.encoders.frames import EncodeParams, FrameEncoder, load_encoder
from fvlm.shards.build import ShardContent, ShardPlan, build_shards
from fvlm.shards.derive import DerivedShard, derive_shards
from fvlm.shards.manifest import read_manifest
from fvlm.shards.reuse import ShardRecord
from fvlm.shards.write import Sample
from pipeline.paths import ENCODE_METRICS, ENCODED, FRAMES

CODE = 2  # raise when the same parameters give other values: stored shards are then made anew


class Sections(Params):
    """What this stage reads of params.yaml."""

    encode: EncodeParams


def main() -> None:
    """Encode every decoded clip, shard by shard; shards whose frames did not change are reused."""
    params = load_params(Sections).encode
    stored, _, size, _ = read_manifest(FRAMES)["frames"]["shape"]
    encoder, sources = load_encoder(params, default_device())
    dino = encoder.dino
    manifest = {
        "stage": "encode",
        "params": params.model_dump(),
        "tokens": {"dtype": "float16", "shape": [stored, dino.num_tokens(size), dino.width]},
        "latents": {"dtype": "float16", "shape": [stored, *encoder.vae.latent_shape(size)]},
    } | sources
    recipe = {"stage": "encode", "code": CODE} | params.model_dump() | sources
    with derive_shards(FRAMES, recipe) as shards, encoder.ahead() as ahead:
        clips, reused, started = sum(len(shard.rows) for shard in shards), 0, time.monotonic()
        with Progress("encode", total=clips, unit="clip") as progress:

            def on_shard(plan: ShardPlan, _record: ShardRecord, known: bool) -> None:
                nonlocal reused
                if known:
                    reused += len(plan.members)
                    progress.skip(len(plan.members), reused=reused)

            def produce(missing: Sequence[ShardPlan]) -> Iterator[tuple[ShardPlan, ShardContent]]:
                wanted = {plan.fingerprint for plan in missing}
                todo = [shard for shard in shards if shard.plan.fingerprint in wanted]
                samples = _encode(todo, encoder, ahead, progress)
                for shard in todo:
                    yield shard.plan, ShardContent(islice(samples, len(shard.rows)), [])

            built = build_shards(
                stage="encode",
                plans=[shard.plan for shard in shards],
                produce=produce,
                out=ENCODED,
                manifest=manifest,
                on_shard=on_shard,
            )
    seconds, fresh = time.monotonic() - started, clips - reused
    encoded = sum(shard["samples"] for shard in built["shards"])
    assert encoded == clips, "every decoded clip is encoded"
    write_json(
        ENCODE_METRICS,
        {
            "inputs": clips,
            "encoded": encoded,
            "shards": len(built["shards"]),
            "reused": reused,
            "clips_per_second": round(fresh / seconds, 2) if fresh else None,
            "peak_memory_gib": round(peak_memory_gib(encoder.device), 2),
        },
    )


def _encode(
    shards: Sequence[DerivedShard], encoder: FrameEncoder, ahead: Ahead, progress: Progress
) -> Iterator[Sample]:
    """The samples of these shards in order; reading and encoding run ahead of who writes them.

    Frames of several clips share a forward, but never of two shards: what a shard holds must not
    depend on which others are made with it.
    """
    groups = (
        (shard, rows)
        for shard in shards
        for rows in shard.groups(encoder.batch_clips(shard.reader.fields["frames"].shape[0]))
    )
    for samples in ahead.map(lambda group: _encode_group(encoder, *group), groups):
        for sample in samples:
            progress.advance()
            yield sample


def _encode_group(encoder: FrameEncoder, shard: DerivedShard, rows: range) -> list[Sample]:
    reader = shard.reader
    clips = reader.read(rows, ["frames"])["frames"]
    tokens, latents = encoder.encode(clips)
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


if __name__ == "__main__":
    run(main)
