"""A stage that makes shards: incremental, safe against crashes, cached by DVC.

    def make(plan, path):                      # called in threads, several at once
        notes = []                             # may be filled while the samples are consumed
        return write_record(path, decode_all(plan.members, notes), notes)

    plans = plan_splits({"train": members, "val": members}, recipe, clips_per_shard=8)
    manifest = build_shards(
        plans=plans, make=make, out=Path("data/decode"),
        manifest=FrameManifest(stage="decode", made_by=..., recipe=..., frames=...),
    )

The unit of work is the shard. Each finished one is kept under `.state/shards/` (see `reuse.py`)
until the output folder is put together, in one rename, from all of them. A run killed at any moment
loses the shards that it was writing, and nothing else; what is known by its fingerprint is linked,
not computed. Several runs of a stage, of experiments side by side, share the work: a shard that
another one makes is waited for.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from fvlm.core.errors import FvlmError, ShardError
from fvlm.core.io import NO_ROOM, delete_leftovers, fsync_folder, hash_json, temporary_name
from fvlm.core.kept import Claims, remade, tell_dvc
from fvlm.shards.manifest import M, Note, ShardEntry, ShardNote, write_manifest
from fvlm.shards.plan import Member, plan_shards
from fvlm.shards.reuse import ShardRecord, ShardStore
from fvlm.shards.verify import note_written
from fvlm.shards.write import Sample, write_shard

WORTH_TELLING = 1 << 30  # bytes of shards; less is read again before DVC has started


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: its members, and the fingerprint of all that decides its bytes."""

    split: str
    fingerprint: str
    members: Sequence[Member]

    @classmethod
    def of(cls, split: str, members: Sequence[Member], recipe: object) -> "ShardPlan":
        """`recipe` is the JSON value of code, parameters and weights."""
        ordered = [[member.key, member.content] for member in members]
        return cls(split, hash_json([recipe, ordered]), members)


Make = Callable[[ShardPlan, Path], ShardRecord]


@dataclass(frozen=True)
class Makers:
    """What makes shards, how many at a time, and what ends those at work."""

    make: Make
    side_by_side: int
    stop: Callable[[], None]


OnShard = Callable[[ShardPlan, ShardRecord, bool], None]


def build_shards(
    *,
    plans: Sequence[ShardPlan],
    make: Make,
    out: Path,
    manifest: M,
    on_shard: OnShard = lambda *_: None,
    side_by_side: int = 1,
    stop: Callable[[], None] = lambda: None,
) -> M:
    """Make the folder `out`: `{split}-{number:06d}.tar` in the order of `plans`, `manifest.json`.

    make: writes the shard of a plan that is not known yet to the given path, `side_by_side` of them
    in threads; its exceptions end the run, finished shards stay.
    manifest: all but its `shards` and `quarantined`.
    on_shard: told of each finished shard, in this thread: plan, record, whether it was made before.
    stop: called when an error ends the run, so that `make` ends soon; it is waited for.
    Returns the manifest. A plan without a single sample gives no file, only its notes. Raises
    FvlmError when another run makes the same folder, ShardError when the disk is full.
    """
    stage = manifest.stage
    store = ShardStore(stage, out)
    _check_plans(plans)
    done: dict[str, ShardRecord] = {}

    def finished(plan: ShardPlan, record: ShardRecord, known: bool) -> None:
        done[plan.fingerprint] = record
        on_shard(plan, record, known)

    try:
        with Claims(store.folder) as claims:
            if not claims.take(hash_json(str(out.resolve()))):
                raise FvlmError(f"{out} is being made by another run of {stage}; wait for it")
            with claims.alone() as alone:
                if alone:
                    store.delete_leftovers()
            missing = _recall(store, plans, finished)
            known = len(done)
            while missing:
                _compute(store, claims, missing, Makers(make, side_by_side, stop), finished)
                missing = [plan for plan in missing if plan.fingerprint not in done]
            made = _assemble(store, plans, done, out, manifest)
            with claims.alone() as alone:
                if alone:
                    store.forget_files(
                        {entry.fingerprint: out / entry.name for entry in made.shards}
                    )
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise ShardError(
            f"no room for stage {stage}: {error}; {len(done)} of {len(plans)} shards are "
            "finished and kept: make room and run again"
        ) from error
    remade(stage)
    if sum(entry.bytes for entry in made.shards) >= WORTH_TELLING:
        facts = ((entry.name, done[entry.fingerprint].facts) for entry in made.shards)
        tell_dvc({out / name: shard.md5 for name, shard in facts if shard})
    if known:
        print(
            f"{stage}: {known} of {len(plans)} shards handed back: made before with the same "
            "code, data and parameters"
        )
    return made


def _recall(store: ShardStore, plans: Sequence[ShardPlan], finished: OnShard) -> list[ShardPlan]:
    """Finish what was made before; returns the others."""
    with ThreadPoolExecutor() as pool:  # verifying reads files
        records = list(pool.map(store.recall, [plan.fingerprint for plan in plans]))
    missing = []
    for plan, record in zip(plans, records, strict=True):
        if record is None:
            missing.append(plan)
        else:
            finished(plan, record, True)
    return missing


def _compute(
    store: ShardStore,
    claims: Claims,
    missing: Sequence[ShardPlan],
    makers: Makers,
    finished: OnShard,
) -> None:
    """Make those of the missing shards that no other run makes; else wait for one of theirs."""
    mine = [plan for plan in missing if claims.take(plan.fingerprint)]
    if not mine:
        mine = list(missing[:1])
        claims.wait(mine[0].fingerprint, f"{len(missing)} shards that are wanted here, too")
    try:
        todo = _recall(store, mine, finished)  # another run may have made it before the claim
        for plan, record in _make_all(store, todo, makers):
            finished(plan, record, False)
            claims.release(plan.fingerprint)
    finally:
        for plan in mine:
            claims.release(plan.fingerprint)


def _make_all(
    store: ShardStore, plans: Sequence[ShardPlan], makers: Makers
) -> Iterator[tuple[ShardPlan, ShardRecord]]:
    """Make the shards; in the order in which they are finished."""

    def make_one(plan: ShardPlan) -> ShardRecord:
        record = makers.make(plan, store.path(plan.fingerprint))
        if not any(note.retry for note in record.notes):
            store.remember(plan.fingerprint, record)
        return record

    waiting, running = iter(plans), dict[Future[ShardRecord], ShardPlan]()
    with ThreadPoolExecutor(makers.side_by_side, thread_name_prefix="shard") as pool:
        try:
            while True:
                for plan in islice(waiting, makers.side_by_side - len(running)):
                    running[pool.submit(make_one, plan)] = plan
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        except BaseException:
            makers.stop()
            raise


def write_record(path: Path, samples: Iterable[Sample], notes: list[Note]) -> ShardRecord:
    """Write the samples to a shard at `path`; without a single one there is no file.

    samples: (key, fields) as `write_shard` takes them, consumed once. notes: about members without
    a sample; read after the samples. They are remembered with the shard and stand in the manifest
    whenever the shard is reused. One with `retry` is about the machine, not the member: its shard
    is not remembered, so the next run makes it anew.
    """
    remaining = iter(samples)
    first, facts = next(remaining, None), None
    if first is not None:
        facts = write_shard(path, chain([first], remaining))
        note_written(path, facts.sha256)
    return ShardRecord(facts=facts, notes=notes)


def _assemble(
    store: ShardStore,
    plans: Sequence[ShardPlan],
    done: Mapping[str, ShardRecord],
    out: Path,
    manifest: M,
) -> M:
    """Link all shards into a sibling of `out`, which then takes its place."""
    building, old = (out.with_name(temporary_name(out.name)) for _ in range(2))
    out.parent.mkdir(parents=True, exist_ok=True)
    delete_leftovers(out.parent)
    building.mkdir()
    try:
        made = _fill(building, store, plans, done, manifest)
        fsync_folder(building)
        if out.exists():  # DVC deletes it before a run; without DVC the old output is still here
            out.rename(old)
        building.rename(out)
        fsync_folder(out.parent)
    finally:
        for leftover in (building, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return made


def _fill(
    folder: Path,
    store: ShardStore,
    plans: Sequence[ShardPlan],
    done: Mapping[str, ShardRecord],
    manifest: M,
) -> M:
    """Link all shards into the folder, and write its manifest."""
    shards, notes = list[ShardEntry](), list[ShardNote]()
    numbers: Counter[str] = Counter()
    for plan in plans:
        record = done[plan.fingerprint]
        notes += [ShardNote(**note.model_dump(), shard=plan.fingerprint) for note in record.notes]
        if record.facts is None:
            continue
        name = f"{plan.split}-{numbers[plan.split]:06d}.tar"
        numbers[plan.split] += 1
        store.place(plan.fingerprint, record, folder / name)
        facts = record.facts.model_dump(exclude={"md5"})
        entry = {"name": name, "split": plan.split, "fingerprint": plan.fingerprint, **facts}
        shards.append(ShardEntry(**entry))
    notes.sort(key=lambda note: (note.video_id, note.reason, note.message))
    made = manifest.model_copy(update={"shards": shards, "quarantined": notes})
    write_manifest(folder, made)
    return made


def plan_splits(
    members: Mapping[str, Iterable[Member]], recipe: object, *, clips_per_shard: int
) -> list[ShardPlan]:
    """The shards of every split, in the order of `members` (split -> its clips)."""
    return [
        ShardPlan.of(split, shard, recipe)
        for split, clips in members.items()
        for shard in plan_shards(clips, clips_per_shard)
    ]


def _check_plans(plans: Sequence[ShardPlan]) -> None:
    repeated = [plan for plan, count in Counter(p.fingerprint for p in plans).items() if count > 1]
    if repeated:
        raise ShardError(f"two planned shards have the fingerprint {repeated[0]}")
