"""Text as token ids: captions, or questions with their answers.

Padded on the left in front of the video and on the right behind it. A padding position is known by
the mask alone, never by its token id: the same id can be EOS.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace

from fvlm.clips.batch import Captions
from fvlm.core.document import Document
from fvlm.core.errors import CheckpointError

MIN_COLUMNS = 2  # so that every weight takes part also where no clip has a caption
UNKNOWN, END = "[UNK]", "[END]"  # of a vocabulary of words
Place = Literal["before", "after", "none"]


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
        return _padded([self._tokens(text) for text in captions], left=self.text == "condition")

    def _tokens(self, caption: str) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(caption.strip(), add_special_tokens=False).ids
        if self.text == "condition" or not tokens or len(tokens) > self.max_tokens:
            return tokens[: self.max_tokens]
        return [*tokens, self.eos]


class Chat(Document):
    """How a question and its answer are written: [turn, m, v_1 .. v_T, header, answer, EOS].

    The user's turn is `before`, the question, `behind`. place: whether it stands before the video,
    after it, or nowhere. header: what opens the answer.
    """

    place: Place
    before: str
    behind: str
    header: str


@dataclass(frozen=True)
class AnswerTokenizer:
    """Questions and answers as the model reads them; nothing is ever cut."""

    tokenizer: Tokenizer
    eos: int
    chat: Chat

    def __call__(self, questions: Sequence[str], answers: Sequence[str | None]) -> Captions:
        """Token ids of B questions and what follows the video; the answer and its EOS count.

        None: no answer, for a model that is to give it.
        """
        turns = [self._encode(self._turn(question)) for question in questions]
        header = self._encode(self.chat.header)
        after, counted = list[list[int]](), list[int]()
        for turn, answer in zip(turns, answers, strict=True):
            said = [] if answer is None else [*self._encode(answer.strip()), self.eos]
            after.append([*(turn if self.chat.place == "after" else []), *header, *said])
            counted.append(len(said))
        behind = _padded(after)
        places = torch.arange(behind.ids.shape[1])
        ends, lengths = behind.mask.sum(1), torch.tensor(counted)
        is_answer = (places >= (ends - lengths)[:, None]) & behind.mask
        before = _padded(turns, left=True) if self.chat.place == "before" else None
        return Captions(behind.ids, behind.mask, is_answer, before)

    def length(self, question: str, answer: str) -> int:
        """Tokens of a question and its answer, with all that is written around them."""
        turn = self._turn(question) if self.chat.place != "none" else ""
        return sum(len(self._encode(text)) for text in (turn, self.chat.header, answer)) + 1

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self.tokenizer.get_vocab_size())

    def _turn(self, question: str) -> str:
        return f"{self.chat.before}{question.strip()}{self.chat.behind}"

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return tokens


def word_tokenizer(texts: Iterable[str], place: Place) -> AnswerTokenizer:
    """Of a model that is trained from nothing: one token for each word of these texts."""
    normalizer, splitter = Lowercase(), Whitespace()
    words = {
        word
        for text in texts
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    }
    vocabulary = {word: number for number, word in enumerate([UNKNOWN, END, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return AnswerTokenizer(tokenizer, vocabulary[END], Chat(place=place, **NO_TEMPLATE))


NO_TEMPLATE = {"before": "", "behind": "", "header": ""}


def _padded(rows: Sequence[list[int]], *, left: bool = False) -> Captions:
    """Rows of token ids, padded on the left or on the right to the longest one."""
    M = max(MIN_COLUMNS, *map(len, rows))
    ids = torch.zeros(len(rows), M, dtype=torch.int64)
    mask = torch.zeros(len(rows), M, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        start = M - len(tokens) if left else 0
        ids[row, start : start + len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        mask[row, start : start + len(tokens)] = True
    return Captions(ids, mask)


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer saved beside a model; raises CheckpointError when it cannot be read."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise CheckpointError(f"{path}: cannot load the tokenizer: {error}") from None
