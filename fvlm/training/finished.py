"""Finished trainings, by name: handed back when the same one is wanted again.

A training leaves a folder: config, weights, curve, with text a tokenizer. `.state/STAGE/NAME/`
keeps a record of these files, and hard links to them until DVC's cache holds them. A training in
the output that dvc.lock names needs no record: a fresh clone knows what `dvc pull` brings. It gets
one when it is handed back, since dvc.lock soon names another.

A finished training can become a longer one where its learning rate does not depend on its length:
the last checkpoint stays until the stage ends with other trainings. It lies nowhere else.
"""

import csv
import hashlib
import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from fvlm.core.document import Document
from fvlm.core.io import state_folder, write_json
from fvlm.core.kept import DvcCache, counts, link_or_copy, md5_of_cached
from fvlm.model.hub import CONFIG, TOKENIZER, WEIGHTS
from fvlm.training.checkpoint import forget_finished

CURVE = "train.csv"
FILES = (CONFIG, WEIGHTS, CURVE, TOKENIZER)  # the last one only of a model with text
RECORD = "finished.json"


class KeptFile(Document):
    """Size in bytes, and hex digests; md5 is DVC's name for the content."""

    bytes: int
    sha256: str
    md5: str


class Record(Document):
    """The files of a finished training, by name; what it shares with longer ones, and its steps."""

    files: dict[str, KeptFile]
    family: str = ""
    steps: int = 0


class FinishedTrainings:
    """The finished trainings of a stage of this project; `out` is its output folder."""

    def __init__(self, stage: str, out: Path) -> None:
        self.root, self.stage = state_folder() / stage, stage
        self._cache, self._out = DvcCache(), out

    def restore(self, name: str, folder: Path, *, family: str, steps: int) -> bool:
        """Put the files of training `name` into `folder`; False when it is not known or whole.

        family, steps: as of `remember`.
        """
        kept = self._kept(name)
        found = kept or self._last(name)
        if found is None:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            (folder / file).unlink(missing_ok=True)
        for file, path in found.items():
            link_or_copy(path, folder / file)
        if kept is None:
            self.remember(name, folder, family=family, steps=steps)
        return True

    def shorter(self, family: str, steps: int) -> int:
        """Steps of the longest finished training that differs in nothing but fewer; 0: none."""
        records = [
            self._read(path) for path in self.root.glob(f"*/{RECORD}") if counts(self.stage, path)
        ]
        found = [record.steps for record in records if record and record.family == family]
        return max((length for length in found if length < steps), default=0)

    def remember(self, name: str, folder: Path, *, family: str, steps: int) -> None:
        """The training is complete, and its files lie in `folder`.

        family: a hash of all that it shares with longer and shorter ones; steps: its length.
        """
        kept, files = self.root / name, {}
        kept.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            if (folder / file).is_file():
                (kept / file).unlink(missing_ok=True)
                link_or_copy(folder / file, kept / file)
                files[file] = _digests(kept / file)
        record = Record(files=files, family=family, steps=steps)
        write_json(kept / RECORD, record.model_dump())

    def forget_files(self, keep: Collection[str]) -> None:
        """Delete links to files that DVC's cache holds, and those of all trainings but `keep`.

        So are the last checkpoints of finished ones. Only where no other training is at work.
        Records stay.
        """
        forget_finished(self.root, keep)
        for path in self.root.glob(f"*/{RECORD}"):
            record = self._read(path)
            for file, facts in record.files.items() if record else ():
                link = path.with_name(file)
                if path.parent.name not in keep or self._cache.find(facts.md5):
                    link.unlink(missing_ok=True)

    def _kept(self, name: str) -> dict[str, Path] | None:
        path = self.root / name / RECORD
        record = self._read(path) if counts(self.stage, path) else None
        found = {}
        for file, facts in record.files.items() if record else ():
            places = (path.with_name(file), self._cache.find(facts.md5))
            whole = [place for place in places if place and _is_whole(place, facts)]
            if not whole:
                return None
            found[file] = whole[0]
        return found or None

    def _last(self, name: str) -> dict[str, Path] | None:
        """Files of the training in the output that dvc.lock names."""
        files = self._cache.last_output(self._out) if counts(self.stage) else {}
        for inside in files:
            if Path(inside).name == CONFIG:
                beside = {file: str(Path(inside).with_name(file)) for file in FILES}
                found = {file: files[at] for file, at in beside.items() if at in files}
                if {CONFIG, WEIGHTS, CURVE} <= found.keys() and _is_training(name, found):
                    return found
        return None

    def _read(self, path: Path) -> Record | None:
        with suppress(OSError, ValidationError):
            return Record.model_validate_json(path.read_bytes())
        return None


def _is_training(name: str, found: dict[str, Path]) -> bool:
    """Whether these files of DVC's cache are of the training `name`, and whole."""
    with suppress(ValueError, TypeError, LookupError, OSError):
        known = json.loads(found[CONFIG].read_bytes())["training"]
        return bool(known == name) and all(
            _digests(path).md5 == md5_of_cached(path) for path in found.values()
        )
    return False


def _is_whole(path: Path, facts: KeptFile) -> bool:
    return path.is_file() and path.stat().st_size == facts.bytes and _digests(path) == facts


def _digests(path: Path) -> KeptFile:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            md5.update(block)
    return KeptFile(bytes=path.stat().st_size, sha256=sha256.hexdigest(), md5=md5.hexdigest())


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows that a training wrote; written again, they are the same bytes."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {n: int(text) if text.isdigit() else float(text) for n, text in row.items() if text}
            for row in csv.DictReader(file)
        ]
