"""Captions of clips: a table of their own, joined by sample key; shards hold no text.

data/text/captions.jsonl (of many also captions.1.jsonl and so on) has a line for each clip that has
a caption: {"key", "video_id", "caption"}. A caption that changes makes no shard anew.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fvlm.core.errors import FvlmError
from fvlm.core.io import read_line
from fvlm.core.rows import Rows, parts_of

NAME = "text/captions.jsonl"  # beside the folders of shards


def table_beside(shards: Path) -> Path:
    """Where the captions of a folder of shards lie by default."""
    return shards.parent / NAME


class CaptionTable:
    """The captions of the clips `keys`, by row; memory holds where each one stands, and its hash.

    Raises FvlmError when there is no table.
    """

    def __init__(self, first: Path, keys: Sequence[str]) -> None:
        if not first.exists():
            raise FvlmError(f"{first} not found; run `dvc repro filter` to make it")
        rows = {key: row for row, key in enumerate(keys)}
        self._paths = list(parts_of(first))
        self._parts, self._places = np.full(len(keys), -1, np.int16), np.zeros(len(keys), np.int64)
        self._hashes = np.zeros((len(keys), hashlib.sha256().digest_size), np.uint8)
        for part, place, line in Rows(first).with_places():
            if (row := rows.get(line["key"])) is not None and line["caption"].strip():
                self._parts[row], self._places[row] = part, place
                text = f"{line['key']} {line['caption']}".encode(errors="surrogatepass")
                self._hashes[row] = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)

    def __getitem__(self, row: int) -> str:
        """The caption of a clip; empty where it has none."""
        part = int(self._parts[row])
        if part < 0:
            return ""
        return str(read_line(self._paths[part], int(self._places[row]))["caption"])

    def __len__(self) -> int:
        """How many clips have a caption."""
        return int((self._parts >= 0).sum())

    def digest(self) -> str:
        """Hex sha256 of all captions with their keys."""
        return hashlib.sha256(self._hashes.tobytes()).hexdigest()
