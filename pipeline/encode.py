"""Encode decoded clips into shards of patch tokens and VAE latents.

Reads   data/decode/, data/weights/, params.yaml:encode
Writes  data/encode/, metrics/encode.json
"""

import threading
import time

from fvlm.core.device import default_device, peak_memory_gib
from fvlm.core.document import write_figures
from fvlm.core.identity import made_by
from fvlm.core.io import write_timings
from fvlm.core.params import Params, check_recorded, load_params
from fvlm.core.progress import Progress
from fvlm.core.stage import run
from fvlm.encoders.frames import EncodeParams, load_encoder
from fvlm.encoders.shards import SIDE_BY_SIDE, Encoding, describe_encoding, encode_clips
from fvlm.shards.build import ShardPlan, build_shards
from fvlm.shards.manifest import FrameManifest, read_manifest
from fvlm.shards.reuse import ShardRecord
from fvlm.shards.write import write_shard
from pipeline.paths import ENCODE_METRICS, ENCODED, FRAMES

RECORDED = ("decode.frame_size", "decode.num_frames")  # of the shards that are encoded


class Sections(Params):
    """What this stage reads of params.yaml."""

    encode: EncodeParams


def main() -> None:
    """Encode every decoded clip, shard by shard; shards whose frames did not change are reused."""
    params = load_params(Sections).encode
    made_by(encode_clips, write_shard)  # read now: an edit while weights load is not this code
    frames = read_manifest(FRAMES, FrameManifest)
    check_recorded(RECORDED, frames.recipe, FRAMES, stage="decode")
    encoder, sources = load_encoder(params, default_device())
    manifest = describe_encoding(frames, params, encoder, sources)
    clips, reused = sum(shard.samples for shard in frames.shards), 0
    counting = threading.Lock()
    with (
        Progress("encode", total=clips, unit="clip") as progress,
        encoder.ahead() as ahead,
    ):
        started = time.monotonic()

        def on_clip() -> None:
            with counting:
                progress.advance()

        def on_shard(plan: ShardPlan, _record: ShardRecord, known: bool) -> None:
            nonlocal reused
            if known:
                reused += encoding.clips(plan)
                with counting:
                    progress.skip(encoding.clips(plan), reused=reused)

        encoding = Encoding(FRAMES, frames, manifest, encoder, ahead, on_clip)
        built = build_shards(
            plans=encoding.plans,
            make=encoding.make,
            out=ENCODED,
            manifest=manifest,
            on_shard=on_shard,
            side_by_side=SIDE_BY_SIDE,
            stop=ahead.close,
        )
    seconds, fresh = time.monotonic() - started, clips - reused
    encoded = sum(shard.samples for shard in built.shards)
    assert encoded == clips, "every decoded clip is encoded"
    write_figures(
        ENCODE_METRICS, {"inputs": clips, "encoded": encoded, "shards": len(built.shards)}
    )
    write_timings(
        "encode",
        reused=reused,
        clips_per_second=fresh / seconds if fresh else None,
        peak_memory_gib=peak_memory_gib(encoder.device),
    )


if __name__ == "__main__":
    run(main, batch_key="encode.batch_frames")
