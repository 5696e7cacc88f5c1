"""Shards made from another stage's shards, one for one: the same samples, in the same order."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fvlm.shards.build import ShardPlan
from fvlm.shards.manifest import Manifest, read_manifest
from fvlm.shards.plan import Member
from fvlm.shards.read import ShardReader, open_shards


@dataclass(frozen=True)
class DerivedShard:
    """A planned shard, and the samples of `reader` that it is made from."""

    plan: ShardPlan
    reader: ShardReader
    rows: range

    def groups(self, size: int) -> list[range]:
        """The rows in groups of `size` samples; the last group may be smaller."""
        return [self.rows[start : start + size] for start in range(0, len(self.rows), size)]


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
