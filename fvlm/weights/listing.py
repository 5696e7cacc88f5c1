"""Which weights the parameters name, told apart by content and found without loading any.

The collect stage writes what this says, and later stages depend on it: a folder of weights that
changes in place, a package or a hub's snapshot of another revision makes them run again.
"""

import importlib.metadata
from contextlib import suppress
from pathlib import Path
from typing import Any

from fvlm.core.errors import FvlmError
from fvlm.core.io import file_stamp, hash_json, read_json, sha256_file, state_folder, write_json
from fvlm.weights.resolve import PACKAGE, hub_snapshot, local_folder

KEYS = {
    "dino": "encode.dino",
    "vae": "encode.vae",
    "language": "model.llm",
    "start": "train.start",
    "instruct": "instruct.start",
}


def list_weights(params: dict[str, Any], *, made: Path) -> dict[str, dict[str, Any]]:
    """What each source in the parsed params.yaml holds at present, by kind; `towers` by name.

    made: the folder of models that a stage writes: what lies in it is that stage's to tell.
    """
    seen, found = _Seen(), dict[str, dict[str, Any]]()
    for kind, key in KEYS.items():
        section, name = key.split(".")
        source = str(params.get(section, {}).get(name, ""))
        own = Path(source).resolve().is_relative_to(made.resolve())
        found[kind] = {"source": source} if own else _describe(source, seen)
    towers = params.get("uncertainty", {}).get("towers", {})
    found["towers"] = {name: _describe(str(tower["model"]), seen) for name, tower in towers.items()}
    seen.save()
    return found


def _describe(source: str, seen: "_Seen") -> dict[str, Any]:
    if not source:
        return {"source": source}
    if source.startswith(PACKAGE):
        name = source.removeprefix(PACKAGE)
        try:
            held = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            return {"source": source, "version": "not installed"}
        files = {str(file): str(file.hash and file.hash.value) for file in held.files or ()}
        return {"source": source, "version": held.version, "files": hash_json(files)}
    if folder := local_folder(source):
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        return {"source": source, "files": {name: seen.sha256(folder / name) for name in names}}
    return {"source": source, "revision": hub_snapshot(source)}


class _Seen:
    """Hashes of files, remembered under .state as long as these are untouched."""

    def __init__(self) -> None:
        self._path, self._known = state_folder() / "weights.json", dict[str, Any]()
        with suppress(FvlmError):
            self._known = read_json(self._path)
        self._found: dict[str, Any] = {}

    def sha256(self, path: Path) -> str:
        stamp = file_stamp(path.stat())
        known = self._known.get(str(path))
        if not known or known["stamp"] != stamp:
            known = {"stamp": stamp, "sha256": sha256_file(path)}
        self._found[str(path)] = known
        return str(known["sha256"])

    def save(self) -> None:
        if self._found != self._known:
            write_json(self._path, self._found)
