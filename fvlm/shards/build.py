"""A stage that makes shards: incremental, safe against crashes, cached by DVC.

    def produce(missing):                      # called once, with the plans that are not known yet
        for plan in missing:                   # any order; look-ahead and parallelism are its own
            notes = []                         # may be filled while the samples are consumed
            yield plan, ShardContent(samples=decode_all(plan.members, notes), notes=notes)

    recipe = {"stage": "decode", "code": 1, "params": params.model_dump()}
    plans = plan_splits({"train": members, "val": members}, recipe, clips_per_shard=8)
    manifest = build_shards(
        stage="decode", plans=plans, produce=produce, out=Path("data/decode"),
        manifest={"stage": "decode", "params": ..., "frames": ...},
    )

The unit of work is the shard. Each finished one is kept under `.state/shards/` (see `reuse.py`)
until the output folder is put together, in one rename, from all of them. A run killed at any moment
loses the shard that it was writing and what `produce` held ahead of it in memory, and nothing else;
what is known by its fingerprint is linked, not computed.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from fvlm.core.errors import ShardError
from fvlm.core.io import NO_ROOM, fsync_folder, hash_json
from fvlm.shards.manifest import write_manifest
from fvlm.shards.plan import Member, plan_shards
from fvlm.shards.reuse import ShardRecord, ShardStore
from fvlm.shards.write import Sample, write_shard


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: its members, and the fingerprint of all that decides its bytes."""

    split: str
    fingerprint: str
    members: Sequence[Member]

    @classmethod
    def of(cls, split: str, members: Sequence[Member], recipe: object) -> "ShardPlan":
        """`recipe` is the JSON value of stage, code version, parameters, encoder revisions."""
        ordered = [[member.key, member.content] for member in members]
        return cls(split, hash_json([recipe, ordered]), members)


@dataclass(frozen=True)
class ShardContent:
    """What a plan turns into.

    samples: (key, fields) as `write_shard` takes them, consumed once.
    notes: rows about members without a sample, with a `video_id`; read after the samples. They
        are remembered with the shard and stand in the manifest whenever the shard is reused. One
        with a true `retry` is about the machine, not the member: its shard is not remembered, so
        the next run makes it anew.
    """

    samples: Iterable[Sample]
    notes: list[dict[str, Any]]


Produce = Callable[[Sequence[ShardPlan]], Iterable[tuple[ShardPlan, ShardContent]]]
OnShard = Callable[[ShardPlan, ShardRecord, bool], None]


def build_shards(
    *,
    stage: str,
    plans: Sequence[ShardPlan],
    produce: Produce,
    out: Path,
    manifest: dict[str, Any],
    on_shard: OnShard | None = None,
) -> dict[str, Any]:
    """Make the folder `out`: `{split}-{number:06d}.tar` in the order of `plans`, `manifest.json`.

    produce: see the top of this file; its exceptions end the run, finished shards stay.
    manifest: fields that stand before `shards` and `quarantined`.
    on_shard: told of each finished shard: plan, record, whether it was reused.
    Returns the manifest. A plan without a single sample gives no file, only its notes. Raises
    FvlmError when another run of the stage is at work, ShardError when the disk is full.
    """
    store = ShardStore(stage)
    _check_plans(plans)
    done: dict[str, ShardRecord] = {}
    try:
        with store.locked():
            with ThreadPoolExecutor() as pool:  # verifying reads files
                known = pool.map(store.recall, [plan.fingerprint for plan in plans])
                for plan, record in zip(plans, known, strict=True):
                    if record is not None:
                        done[plan.fingerprint] = record
                        if on_shard:
                            on_shard(plan, record, True)
            _compute(store, plans, produce, done, on_shard)
            return _assemble(store, plans, done, out, manifest)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise ShardError(
            f"no room for stage {stage}: {error}; {len(done)} of {len(plans)} shards are "
            "finished and kept: make room and run again"
        ) from error


def _compute(
    store: ShardStore,
    plans: Sequence[ShardPlan],
    produce: Produce,
    done: dict[str, ShardRecord],
    on_shard: OnShard | None,
) -> None:
    missing = {plan.fingerprint: plan for plan in plans if plan.fingerprint not in done}
    for plan, content in produce(list(missing.values())) if missing else ():
        del missing[plan.fingerprint]
        samples = iter(content.samples)
        first = next(samples, None)
        facts = None
        if first is not None:
            facts = write_shard(store.path(plan.fingerprint), chain([first], samples))
        record = ShardRecord(facts, content.notes)
        if not any(note.get("retry") for note in content.notes):
            store.remember(plan.fingerprint, record)
        done[plan.fingerprint] = record
        if on_shard:
            on_shard(plan, record, False)
    if missing:
        raise ShardError(f"{len(missing)} planned shards were not produced: {list(missing)[:3]}")


def _assemble(
    store: ShardStore,
    plans: Sequence[ShardPlan],
    done: dict[str, ShardRecord],
    out: Path,
    manifest: dict[str, Any],
) -> dict[str, Any]:
    """Link all shards into a sibling of `out`, which then takes its place."""
    building, old = (out.with_name(f".{out.name}.{word}.tmp") for word in ("new", "old"))
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir(parents=True)
    shards, notes, placed = [], [], {}
    numbers: Counter[str] = Counter()
    for plan in plans:
        record = done[plan.fingerprint]
        notes += record.notes
        if record.facts is None:
            continue
        name = f"{plan.split}-{numbers[plan.split]:06d}.tar"
        numbers[plan.split] += 1
        store.place(plan.fingerprint, building / name)
        placed[plan.fingerprint] = out / name
        facts = {key: value for key, value in asdict(record.facts).items() if key != "md5"}
        shards.append({"name": name, "split": plan.split, "fingerprint": plan.fingerprint, **facts})
    document = {**manifest, "shards": shards, "quarantined": sorted(notes, key=_note_order)}
    write_manifest(building, document)
    fsync_folder(building)
    if out.exists():  # DVC deletes it before a run; without DVC the old output is still here
        out.rename(old)
    building.rename(out)
    fsync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)
    store.forget_files(placed)
    return document


def plan_splits(
    members: Mapping[str, Iterable[Member]], recipe: object, *, clips_per_shard: int
) -> list[ShardPlan]:
    """The shards of every split, in the order of `members` (split -> its clips)."""
    return [
        ShardPlan.of(split, shard, recipe)
        for split, clips in members.items()
        for shard in plan_shards(clips, clips_per_shard)
    ]


def _note_order(note: dict[str, Any]) -> tuple[str, str]:
    return str(note.get("video_id")), json.dumps(note, sort_keys=True)


def _check_plans(plans: Sequence[ShardPlan]) -> None:
    repeated = [plan for plan, count in Counter(p.fingerprint for p in plans).items() if count > 1]
    if repeated:
        raise ShardError(f"two planned shards have the fingerprint {repeated[0]}")
