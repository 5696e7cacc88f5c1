"""Finished shards outlive the run that made them.

Layout of `.state/shards/STAGE/`, for a shard with fingerprint F:

    claims  which process makes which shard at present; see `fvlm/core/kept.py`
    F.json  the record: size, digests, sample count, notes; tiny, kept for ever
    F.tar   the shard itself, from its completion until it lies safe in DVC's cache

What happens to `F.tar`: it stays until its run succeeds. Then it is kept only as a hard link of the
file in the stage's output, which costs nothing and covers a crash while DVC moves the output into
its cache; other leftovers, and copies where the file system cannot link, are deleted. The next run
deletes those that DVC's cache holds. Nothing is deleted while another run of the stage is at work.

A known fingerprint is served from `F.tar` or from DVC's cache, which names files by md5: by its
record, or else by the manifest of the output that dvc.lock names, so that a fresh clone knows what
`dvc pull` brings; what is served by that gets a record. Cached files are shared and read-only: they
are linked, never written. A damaged one is deleted and the shard computed again.

That a video's content cannot be decoded is remembered with the shard, too. A failure of the machine
(a time-out, say) is not: such a shard is made anew whenever the stage runs.
"""

import sys
from collections import defaultdict
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from fvlm.core.document import Document
from fvlm.core.errors import FvlmError, ShardError
from fvlm.core.io import delete_leftovers, read_json, state_folder, write_json
from fvlm.core.kept import DvcCache, counts, link_or_copy, md5_of_cached
from fvlm.shards.manifest import NAME, Manifest, Note, parse_manifest
from fvlm.shards.verify import DamagedShardError, verify_file
from fvlm.shards.write import ShardFacts


class ShardRecord(Document):
    """What is remembered of a finished shard. `facts` is None when no member gave a sample."""

    facts: ShardFacts | None
    notes: list[Note]


class ShardStore:
    """Finished shards of one stage, by fingerprint; `out` is the stage's output folder."""

    def __init__(self, stage: str, out: Path) -> None:
        self.folder = state_folder() / "shards" / stage
        self._stage, self._out = stage, out
        self._cache = DvcCache()

    def path(self, fingerprint: str) -> Path:
        """Where the finished shard of this fingerprint is kept."""
        return self.folder / f"{fingerprint}.tar"

    def remember(self, fingerprint: str, record: ShardRecord) -> None:
        """From now on the shard counts as finished; `path` or DVC's cache must hold its file."""
        write_json(self._record(fingerprint), record.model_dump())

    def recall(self, fingerprint: str) -> ShardRecord | None:
        """The record of a finished shard whose file is at hand; None when it must be computed."""
        kept = self._read(fingerprint)
        record = kept or self._last.get(fingerprint)
        if record is None:
            return None
        places = self._places(fingerprint, record)
        if record.facts and not any(_is_intact(path, record.facts) for path in places):
            return None
        if kept is None:  # dvc.lock soon names another output
            self.remember(fingerprint, record)
        return record

    def place(self, fingerprint: str, record: ShardRecord, target: Path) -> None:
        """Put a finished shard at `target`."""
        for path in self._places(fingerprint, record):
            with suppress(FileNotFoundError):  # the cache took it over meanwhile
                return link_or_copy(path, target)
        raise ShardError(f"{self.path(fingerprint)} has vanished; run the stage again")

    def forget_files(self, placed: dict[str, Path]) -> None:
        """Delete kept shards, except hard links of the files that the run has just placed.

        Only where no other run is at work.
        """
        for kept in self.folder.glob("*.tar"):
            target = placed.get(kept.stem)
            if target is None or not target.samefile(kept):
                kept.unlink()

    def delete_leftovers(self) -> None:
        """Files of killed runs, and shards that DVC's cache holds by now; as `forget_files`."""
        delete_leftovers(self.folder)
        for kept in self.folder.glob("*.tar"):
            record = self._read(kept.stem)
            facts = record.facts if record else None
            cached = self._cache.find(facts.md5) if facts else None
            if facts is None or (cached and cached.stat().st_size == facts.bytes):
                kept.unlink()

    def _places(self, fingerprint: str, record: ShardRecord) -> list[Path]:
        cached = self._cache.find(record.facts.md5) if record.facts else None
        return [path for path in (self.path(fingerprint), cached) if path and path.exists()]

    def _read(self, fingerprint: str) -> ShardRecord | None:
        path = self._record(fingerprint)
        with suppress(FvlmError, ValidationError):
            if counts(self._stage, path):
                return ShardRecord.model_validate(read_json(path))
        return None

    def _record(self, fingerprint: str) -> Path:
        return self.folder / f"{fingerprint}.json"

    @cached_property
    def _last(self) -> dict[str, ShardRecord]:
        """Records of the shards of the output that dvc.lock names."""
        files = self._cache.last_output(self._out) if counts(self._stage) else {}
        with suppress(FvlmError, LookupError):
            manifest = parse_manifest(files[NAME].read_bytes(), str(files[NAME]), Manifest)
            notes = defaultdict(list)
            for note in manifest.quarantined:
                notes[note.shard].append(Note(**note.model_dump(exclude={"shard"})))
            again = {name for name, told in notes.items() if any(note.retry for note in told)}
            records = {name: ShardRecord(facts=None, notes=told) for name, told in notes.items()}
            for entry in manifest.shards:
                if entry.name in files:
                    known = entry.model_dump(exclude={"name", "split", "fingerprint"})
                    facts = ShardFacts(**known, md5=md5_of_cached(files[entry.name]))
                    told = notes.get(entry.fingerprint, [])
                    records[entry.fingerprint] = ShardRecord(facts=facts, notes=told)
                else:
                    records.pop(entry.fingerprint, None)
            return {name: record for name, record in records.items() if name not in again}
        return {}


def _is_intact(path: Path, facts: ShardFacts) -> bool:
    """Whether the file is whole; a damaged one is deleted, as DVC does with its own."""
    try:
        verify_file(path, size=facts.bytes, sha256=facts.sha256)
    except DamagedShardError as damage:
        print(f"{path} is damaged: {damage.detail}; computing the shard again", file=sys.stderr)
        path.unlink(missing_ok=True)
        return False
    except ShardError:  # vanished
        return False
    return True
