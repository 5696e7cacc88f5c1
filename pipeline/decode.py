"""Decode accepted videos into shards of uint8 frames.

Reads   data/filter/manifest.jsonl, the videos, params.yaml:decode
Writes  data/decode/, metrics/decode.json
"""

import time

from fvlm.core.document import write_figures
from fvlm.core.io import read_jsonl, write_timings
from fvlm.core.params import Params, load_params
from fvlm.core.progress import Progress
from fvlm.core.stage import run
from fvlm.shards.build import build_shards
from fvlm.video.decode import DecodeParams
from fvlm.video.shards import Decoding, count_reasons, describe_frames, plan_frames
from fvlm.video.worker import peak_memory_gib
from pipeline.paths import DECODE_METRICS, FRAMES, MANIFEST


class Sections(Params):
    """What this stage reads of params.yaml."""

    decode: DecodeParams


def main() -> None:
    """Decode every accepted video; shards whose clips did not change are reused."""
    params = load_params(Sections).decode
    started = time.monotonic()
    rows = {row["key"]: row for row in read_jsonl(MANIFEST) if row["status"] == "accepted"}
    header = describe_frames(params)
    with Progress("decode", total=len(rows), unit="video") as progress:
        decoding = Decoding(rows, params, progress)
        manifest = build_shards(
            plans=plan_frames(rows, header, params),
            produce=decoding.produce,
            out=FRAMES,
            manifest=header,
            on_shard=decoding.count_known,
        )
    decoded = sum(shard.samples for shard in manifest.shards)
    quarantined = len(manifest.quarantined)
    assert decoded + quarantined == len(rows), "every accepted video is decoded or quarantined"
    seconds, fresh = time.monotonic() - started, len(rows) - decoding.reused
    counts = {"inputs": len(rows), "decoded": decoded, "quarantined": quarantined}
    counts |= {f"reason_{name}": n for name, n in count_reasons(manifest.quarantined).items()}
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
