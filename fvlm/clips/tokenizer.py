"""Captions as token ids, padded on the left in front of the video and on the right behind it.

A padding position is known by the mask alone, never by its token id: the same id can be EOS.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer

from fvlm.clips.batch import Captions
from fvlm.core.errors import CheckpointError

MIN_COLUMNS = 2  # so that every weight takes part also where no clip has a caption


@dataclass(frozen=True)
class CaptionTokenizer:
    """Captions as the model reads them: in front of the video (condition), or after it."""

    tokenizer: Tokenizer
    eos: int
    text: Literal["condition", "caption"]
    max_tokens: int

    def __call__(self, captions: Sequence[str]) -> Captions:
        """Token ids of B captions, each cut after `max_tokens`.

        After the video an EOS ends each caption, except one that was cut: the model shall not learn
        to stop in the midst of a sentence. A clip without a caption has no tokens at all, not even
        EOS: nothing is said about it, and it has no caption loss.
        """
        rows = [self._tokens(caption) for caption in captions]
        M = max(MIN_COLUMNS, *map(len, rows))
        ids = torch.zeros(len(rows), M, dtype=torch.int64)
        mask = torch.zeros(len(rows), M, dtype=torch.bool)
        for row, tokens in enumerate(rows):
            start = M - len(tokens) if self.text == "condition" else 0
            ids[row, start : start + len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
            mask[row, start : start + len(tokens)] = True
        return Captions(ids, mask)

    def _tokens(self, caption: str) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(caption.strip(), add_special_tokens=False).ids
        if self.text == "condition" or not tokens or len(tokens) > self.max_tokens:
            return tokens[: self.max_tokens]
        return [*tokens, self.eos]


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer saved beside a model; raises CheckpointError when it cannot be read."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise CheckpointError(f"{path}: cannot load the tokenizer: {error}") from None
