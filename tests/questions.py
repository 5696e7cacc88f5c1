"""Questions about clips as `filter` leaves them, and words by number that they are asked in."""

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from fvlm.clips.batch import Captions
from fvlm.clips.tokenizer import AnswerTokenizer, Chat, Place

WORDS = (
    *("</s>", "what", "is", "there", "red", "blue", "the", "square", "left", "right", "?"),
    *("<user>", "<end>", "<answer>", "a", "film"),
)
# One as long as allowed among shorter ones, and an answer of one word among longer ones.
QUESTIONS = ("what is there ?", "left ?", "what is the red square ?", "right ?")
ANSWERS = ("red", "the blue square", "left", "blue square")
REJECTED = ("the red film", "left", "right", "a square")


def tokenizer(place: Place) -> AnswerTokenizer:
    """16 words; EOS is 0, which is also what padding happens to be."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    chat = Chat(place=place, before="<user> ", behind=" <end>", header="<answer>")
    return AnswerTokenizer(words, 0, chat)


def rows(captions: Captions | None) -> list[list[int]]:
    """The token ids of each text, without padding."""
    assert captions is not None
    return [ids[mask].tolist() for ids, mask in zip(captions.ids, captions.mask, strict=True)]


def question(key: str, number: int = 0, **changes: Any) -> dict[str, Any]:
    """A line of the table of questions: about the clip `key`, with two options."""
    line: dict[str, Any] = {"key": key, "group": f"group of {key}", "video_id": f"{key}.mp4"}
    line |= {"question": "what is there ?", "answer": "red", "options": ["red", "blue"]}
    line |= {"rejected": "", "start": None, "end": None, "kind": "", "id": f"{key}.mp4#{number}"}
    return line | changes
