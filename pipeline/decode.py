"""Decode the clips of accepted videos into shards of uint8 frames.

Reads   data/filter/manifest.jsonl, the videos, params.yaml:decode
Writes  data/decode/, metrics/decode.json
"""

import time

from fvlm.core.document import write_figures
from fvlm.core.io import write_timings
from fvlm.core.machine import peak_memory_gib
from fvlm.core.params import Params, load_params
from fvlm.core.progress import Progress
from fvlm.core.stage import run
from fvlm.shards.build import build_shards
from fvlm.video.clips import DecodeParams
from fvlm.video.shards import (
    AcceptedVideos,
    Decoding,
    count_reasons,
    describe_frames,
    plan_frames,
)
from pipeline.paths import DECODE_METRICS, FRAMES, MANIFEST


class Sections(Params):
    """What this stage reads of params.yaml."""

    decode: DecodeParams


def main() -> None:
    """Decode every clip; shards whose clips did not change are reused."""
    params = load_params(Sections).decode
    started = time.monotonic()
    videos, header = AcceptedVideos(MANIFEST, params), describe_frames(params)
    with (
        Progress("decode", total=videos.clips, unit="clip") as progress,
        Decoding(videos, params, progress) as decoding,
    ):
        manifest = build_shards(
            plans=plan_frames(videos, header, params),
            make=decoding.make,
            out=FRAMES,
            manifest=header,
            on_shard=decoding.count_known,
            side_by_side=decoding.side_by_side,
            stop=decoding.stop,
        )
    decoded = sum(shard.samples for shard in manifest.shards)
    reasons = count_reasons(manifest.quarantined)
    quarantined = sum(reasons.values())
    assert decoded + quarantined == videos.clips, "every clip is decoded or quarantined"
    seconds, fresh = time.monotonic() - started, videos.clips - decoding.reused
    counts = {"videos": videos.videos, "inputs": videos.clips}
    counts |= {"decoded": decoded, "quarantined": quarantined, "with_cuts": videos.with_cuts}
    counts |= {f"reason_{name}": count for name, count in sorted(reasons.items())}
    write_figures(DECODE_METRICS, counts | {"shards": len(manifest.shards)})
    write_timings(
        "decode",
        reused=decoding.reused,
        clips_per_second=fresh / seconds if fresh else None,
        peak_memory_gib=peak_memory_gib(),
    )
    if again := sum(note.retry for note in manifest.quarantined):
        print(
            f"decode: {again} failures may be this machine's, not the videos': {FRAMES}/"
            "manifest.json names them; `dvc repro -f -s decode && dvc repro` tries them again"
        )


if __name__ == "__main__":
    run(main)
