"""Encode decoded clips into shards of patch tokens and VAE latents.

Reads   data/decode/, params.yaml:encode
Writes  data/encode/, metrics/encode.json
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fvlm.compute import default_device, peak_memory_gib
from fvlm.io import write_json
from fvlm.models.dino import load_dino
from fvlm.models.encoding import EncodeParams, FrameEncoder
from fvlm.models.vae import load_vae
from fvlm.params import Params, load_params
from fvlm.progress import Progress
from fvlm.shards.build import ShardContent, ShardPlan, build_shards
from fvlm.shards.manifest import read_manifest
from fvlm.shards.plan import Member
from fvlm.shards.read import ShardReader, open_shards
from fvlm.shards.reuse import ShardRecord
from fvlm.shards.write import Sample
from pipeline.stage import run

CLIPS, SHARDS, METRICS = Path("data/decode"), Path("data/encode"), Path("metrics/encode.json")
CODE = 1  # raise when the same parameters give other values: stored shards are then made anew


class Sections(Params):
    """What this stage reads of params.yaml."""

    encode: EncodeParams


def main() -> None:
    """Encode every decoded clip, shard by shard; shards whose frames did not change are reused."""
    params = load_params(Sections).encode
    started = time.monotonic()
    decoded = read_manifest(CLIPS)
    dino, dino_source = load_dino(params.dino)
    vae, vae_source = load_vae(params.vae)
    encoder = FrameEncoder(dino, vae, params, default_device())
    stored, _, size, _ = decoded["frames"]["shape"]
    described = {
        "dino": dataclasses.asdict(dino_source) | {"blocks": dino.blocks, "layer": params.layer},
        "vae": dataclasses.asdict(vae_source) | {"scaling_factor": vae.scaling_factor},
    }
    manifest = {
        "stage": "encode",
        "params": params.model_dump(),
        "tokens": {"dtype": "float16", "shape": [stored, dino.num_tokens(size), dino.width]},
        "latents": {"dtype": "float16", "shape": [stored, *vae.latent_shape(size)]},
    } | described
    sources = _plan(decoded, {"stage": "encode", "code": CODE} | params.model_dump() | described)
    clips, reused = sum(len(plan.members) for plan, _, _ in sources), 0
    with Progress("encode", total=clips, unit="clip") as progress:

        def on_shard(plan: ShardPlan, _record: ShardRecord, known: bool) -> None:
            nonlocal reused
            reused += len(plan.members) if known else 0
            progress.advance(len(plan.members) if known else 0, reused=reused)

        def produce(missing: Sequence[ShardPlan]) -> Iterator[tuple[ShardPlan, ShardContent]]:
            wanted = {plan.fingerprint for plan in missing}
            for plan, reader, first in sources:
                if plan.fingerprint in wanted:
                    rows = range(first, first + len(plan.members))
                    yield plan, ShardContent(_samples(encoder, reader, rows, progress), [])

        built = build_shards(
            stage="encode",
            plans=[plan for plan, _, _ in sources],
            produce=produce,
            out=SHARDS,
            manifest=manifest,
            on_shard=on_shard,
        )
    write_json(
        METRICS,
        {
            "inputs": clips,
            "encoded": sum(shard["samples"] for shard in built["shards"]),
            "shards": len(built["shards"]),
            "reused": reused,
            "clips_per_second": round((clips - reused) / (time.monotonic() - started), 2),
            "peak_memory_gib": round(peak_memory_gib(encoder.device), 2),
        },
    )


def _plan(decoded: dict[str, Any], recipe: object) -> list[tuple[ShardPlan, ShardReader, int]]:
    """One shard for each decoded one: its plan, the reader of its split, its first row there."""
    sources = []
    for split in dict.fromkeys(shard["split"] for shard in decoded["shards"]):
        reader, first = open_shards(CLIPS, split=split), 0
        for shard in decoded["shards"]:
            if shard["split"] == split:
                keys = reader.keys[first : first + shard["samples"]]
                members = [Member(key, shard["sha256"]) for key in keys]
                sources.append((ShardPlan.of(split, members, recipe), reader, first))
                first += shard["samples"]
    return sources


def _samples(
    encoder: FrameEncoder, reader: ShardReader, rows: range, progress: Progress
) -> Iterator[Sample]:
    """The samples of one shard; frames of several clips share a forward."""
    stored = reader.fields["frames"].shape[0]
    together = max(1, encoder.params.batch_frames // stored)
    for start in range(rows.start, rows.stop, together):
        group = range(start, min(start + together, rows.stop))
        frames = reader.read(group, ["frames"])["frames"]
        tokens, latents = encoder.encode(frames.reshape(-1, *frames.shape[2:]))
        for number, row in enumerate(group):
            own = slice(number * stored, (number + 1) * stored)
            fields = {"tokens.npy": tokens[own], "latents.npy": latents[own]}
            yield reader.keys[row], fields | {"json": reader.metadata(row)}
        progress.advance(len(group))


if __name__ == "__main__":
    run(main)
