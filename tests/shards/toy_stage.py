"""A small stage for the tests: reads `videos.txt` and `params.yaml`, writes `data/toy`.

Videos with `broken` in their name are quarantined. Appends one line to `computed.log` (in the
project's root) for each shard that it starts to compute. With TOY_PAUSE set it makes a file
`paused` after its first shard, and waits until that is gone.
"""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fvlm.core.io import project_root, sample_key
from fvlm.shards import build
from fvlm.shards.build import ShardPlan, build_shards, write_record
from fvlm.shards.manifest import Manifest, Note
from fvlm.shards.plan import Member, plan_shards
from fvlm.shards.reuse import ShardRecord
from fvlm.shards.write import Sample

FRAMES = (6, 3, 8, int(os.environ.get("TOY_WIDTH", "8")))
if os.environ.get("TOY_TELLS"):
    build.WORTH_TELLING = 0


def samples_of(members: Sequence[Member], scale: int, notes: list[Note]) -> Iterator[Sample]:
    for member in members:
        if "broken" in member.content:
            notes.append(Note(video_id=member.content, reason="broken", message="as named"))
            continue
        seed = sum(member.key.encode()) * scale
        frames = np.random.default_rng(seed).integers(0, 256, FRAMES, np.uint8)
        metadata = {"video_id": member.content, "caption": f"caption of {member.content}"}
        latents = (frames[:, :, ::4, ::4] / 128 - 1).astype(np.float16)
        yield member.key, {"frames.npy": frames, "latents.npy": latents, "json": metadata}


def make(plan: ShardPlan, path: Path, scale: int) -> ShardRecord:
    with (project_root() / "computed.log").open("a") as log:
        log.write(f"{plan.fingerprint}\n")
    notes: list[Note] = []
    return write_record(path, samples_of(plan.members, scale, notes), notes)


def pause(_plan: ShardPlan, _record: ShardRecord, known: bool) -> None:
    if os.environ.pop("TOY_PAUSE", "") and not known:
        paused = Path("paused")
        paused.touch()
        while paused.exists():
            time.sleep(0.01)


def main() -> None:
    videos = Path("videos.txt").read_text().splitlines()
    scale = int(Path("params.yaml").read_text().split(":")[1])
    plans = []
    for split in ("train", "val"):
        chosen = [video for video in videos if video.startswith("val") == (split == "val")]
        members = [Member(sample_key(video), video) for video in chosen]
        recipe = {"stage": "toy", "scale": scale}
        plans += [ShardPlan.of(split, shard, recipe) for shard in plan_shards(members, 3)]
    build_shards(
        plans=plans,
        make=lambda plan, path: make(plan, path, scale),
        on_shard=pause,
        out=Path("data/toy"),
        manifest=Manifest(stage="toy", made_by="toy", recipe={"scale": scale}),
    )


if __name__ == "__main__":
    main()
