"""The clips of one split, read as the model takes them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fvlm.clips.batch import Batch, Captions, Input
from fvlm.clips.text import CaptionTable, table_beside
from fvlm.clips.tokenizer import CaptionTokenizer
from fvlm.core.errors import ParamsError, ShardError
from fvlm.shards.footage import show_same
from fvlm.shards.read import ShardReader, open_shards

Indices = NDArray[np.int64]


class ClipReader:
    """Clips by row, in the order of the encode shards.

    `keys`, one a clip; `stored`, frames of a clip. Latents come from the encode shards, and so do
    the tokens; frames come from the decode shards, found by key.
    """

    def __init__(
        self,
        encoded: ShardReader,
        decoded: ShardReader | None,
        tokenizer: CaptionTokenizer | None,
        captions: CaptionTable | None = None,
        memory: "BatchMemory | None" = None,
    ) -> None:
        self.keys = encoded.keys
        self.stored: int = encoded.fields["latents"].shape[0]
        self._encoded, self._decoded, self._tokenizer = encoded, decoded, tokenizer
        self._decoded_rows = _match(encoded, decoded) if decoded else None
        self._memory, self._table = memory, captions

    def __len__(self) -> int:
        return len(self.keys)

    def metadata(self, row: int) -> dict[str, Any]:
        """What is known of a clip besides its pixels: video_id, start, end, footage and so on."""
        return self._encoded.metadata(row)

    def all_metadata(self) -> Iterator[dict[str, Any]]:
        """That of all clips, in order."""
        return self._encoded.all_metadata()

    def read(self, rows: Sequence[int] | Indices, frames: Indices) -> Batch:
        """Clips `rows` [B] with their `frames`, int64 [B,T] or the same [T] for each."""
        if self._memory:
            self._memory.turn()
        names = ("latents",) if self._decoded else ("tokens", "latents")
        arrays = self._read(self._encoded, rows, names, frames)
        if self._decoded is not None and self._decoded_rows is not None:
            chosen = self._decoded_rows[np.asarray(rows)]
            arrays |= self._read(self._decoded, chosen, ("frames",), frames)
        inputs = arrays["frames" if self._decoded else "tokens"]
        return Batch(
            inputs=torch.from_numpy(inputs),
            latents=torch.from_numpy(arrays["latents"]),
            keys=[self.keys[row] for row in rows],
            captions=self._captions(rows),
        )

    def _read(
        self,
        reader: ShardReader,
        rows: Sequence[int] | Indices,
        names: tuple[str, ...],
        frames: Indices,
    ) -> dict[str, NDArray[Any]]:
        out = None
        if self._memory:
            shape = len(rows), frames.shape[-1]
            kinds = {name: reader.fields[name] for name in names}
            out = {
                name: self._memory.array(name, (*shape, *kind.shape[1:]), kind.dtype)
                for name, kind in kinds.items()
            }
        return reader.read(rows, fields=names, frames=frames, out=out)

    def _captions(self, rows: Sequence[int] | Indices) -> Captions | None:
        if self._tokenizer is None or self._table is None:
            return None
        return self._tokenizer([self._table[int(row)] for row in rows])

    def check_frames(self, wanted: int, key: str) -> None:
        """Raise ParamsError when the parameter `key` asks for more frames than are stored."""
        if wanted > self.stored:
            raise ParamsError(f"{key} ({wanted}) must be <= decode.num_frames ({self.stored})")


class BatchMemory:
    """Arrays that batches are read into, `count` of them in turns, pinned for a GPU if wanted.

    Their pages are mapped once and not for every batch. A batch is overwritten by the one that is
    read `count` batches later.
    """

    def __init__(self, count: int, *, pinned: bool) -> None:
        self._turns: list[dict[str, Tensor]] = [{} for _ in range(count)]
        self._pinned = pinned

    def turn(self) -> None:
        """Go on to the arrays that were used longest ago."""
        self._turns.append(self._turns.pop(0))

    def array(self, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """This turn's array `name`; another shape than last time makes a new one."""
        held = self._turns[0].get(name)
        if held is None or held.shape != shape:
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            held = torch.empty(shape, dtype=kind, pin_memory=self._pinned)
            self._turns[0][name] = held
        array: NDArray[Any] = held.numpy()
        return array


def open_clips(
    encoded: Path,
    decoded: Path,
    *,
    split: str,
    input: Input,
    tokenizer: CaptionTokenizer | None = None,
    captions: Path | None = None,
    memory: BatchMemory | None = None,
) -> ClipReader:
    """Open the shards of a split; those of the folder `decoded` only when `input` is frames.

    With a tokenizer, batches have captions, from the table at `captions`; by default it is looked
    for beside the folder `encoded`. With `memory` batches are read into it. Raises ShardError when
    both folders do not hold the same clips, or captions are wanted and no clip has one.
    """
    shards = open_shards(encoded, split=split)
    frames = open_shards(decoded, split=split) if input == "frames" else None
    if frames is None and "tokens" not in shards.fields:
        raise ShardError(
            f"{encoded} holds no tokens, which a model with train.input: features reads: set "
            "encode.tokens: true and run `dvc repro`, or train.input: frames"
        )
    table = CaptionTable(captions or table_beside(encoded), shards.keys) if tokenizer else None
    if tokenizer and not table:
        raise ShardError(
            f"model.text: {tokenizer.text} needs captions, and none of the {len(shards)} {split} "
            f"clips of {encoded} has one; give collect.source a list with captions, or set "
            "model.text: none"
        )
    return ClipReader(shards, frames, tokenizer, table, memory)


class Described(Protocol):
    """What tells of each of its rows from which footage it is."""

    def all_metadata(self) -> Iterator[dict[str, Any]]:
        """What is known of each clip besides its pixels, in order."""


def rows_of_new_footage(held_out: Described, trained: Described) -> list[int]:
    """Rows of the held-out clips whose footage is in no training clip."""
    footage = (clip["footage"] for clip in held_out.all_metadata())
    seen = show_same(footage, (clip["footage"] for clip in trained.all_metadata()))
    return [row for row, is_seen in enumerate(seen) if not is_seen]


def _match(encoded: ShardReader, decoded: ShardReader) -> Indices:
    """For every encoded clip its row in the decode shards, int64 [len(encoded)]."""
    if different := sorted(set(encoded.keys) ^ set(decoded.keys)):
        raise ShardError(
            f"the encode and decode shards do not hold the same clips: {len(different)} are in one "
            f"of them only, such as {different[0]}; run `dvc repro -f -s encode`"
        )
    frames, latents = decoded.fields["frames"].shape[0], encoded.fields["latents"].shape[0]
    if frames != latents:
        raise ShardError(
            f"the decode shards hold {frames} frames of a clip, the encode shards {latents}; "
            "run `dvc repro -f -s encode`"
        )
    rows = {key: row for row, key in enumerate(decoded.keys)}
    return np.asarray([rows[key] for key in encoded.keys], np.int64)
