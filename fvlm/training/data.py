"""What a training reads: its clips, with captions or questions where the model has text."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fvlm.clips.questions import AskedClips, QuestionTable, Reader, ask, read_questions
from fvlm.clips.reader import BatchMemory, open_clips
from fvlm.clips.text import CaptionTable, table_beside
from fvlm.clips.tokenizer import AnswerTokenizer, CaptionTokenizer, Place
from fvlm.core.errors import CheckpointError, ShardError
from fvlm.model.build import build_answer_tokenizer, build_tokenizer
from fvlm.model.foveated import ModelParams
from fvlm.model.saved import load_tokenizer_of
from fvlm.shards.manifest import EncodedManifest, FrameManifest, Manifest, read_manifest
from fvlm.shards.read import open_shards
from fvlm.training.optim import PreferParams, TrainParams
from fvlm.training.start import find_start


@dataclass(frozen=True)
class Asking:
    """How questions are asked. place: where they stand; max_tokens: of a question and its answer;
    rejected: whether those alone that have a worse answer, which is read too.
    """

    place: Place
    max_tokens: int
    rejected: bool = False


@dataclass(frozen=True)
class Training:
    """One of the models to train: its parameters, with a single seed, and its folder.

    coarse_only: without fine passes; pooled_tokens: so many a frame, without queries; 0: one.
    asking: of a model that answers questions; prefer: of one that learns which of two is better.
    """

    model: ModelParams
    params: TrainParams
    coarse_only: bool
    folder: Path
    title: str
    pooled_tokens: int = 0
    asking: Asking | None = None
    prefer: PreferParams | None = None


@dataclass(frozen=True)
class Shards:
    """Folders of the encode and the decode shards; the tables of captions and of questions."""

    encoded: Path
    frames: Path
    captions: Path | None = None
    questions: Path | None = None


def open_split(
    split: str, training: Training, shards: Shards, memory: BatchMemory | None = None
) -> Reader:
    """The clips of a split as this training reads them; of one with questions, each with one."""
    tokenizer = tokenizer_of(training, shards)
    answers = tokenizer if isinstance(tokenizer, AnswerTokenizer) else None
    clips = open_clips(
        shards.encoded,
        shards.frames,
        split=split,
        input=training.params.input,
        tokenizer=tokenizer if isinstance(tokenizer, CaptionTokenizer) else None,
        captions=shards.captions,
        memory=memory,
    )
    asking = training.asking
    if answers is None or asking is None or shards.questions is None:
        return clips
    most, rejected = asking.max_tokens, asking.rejected
    return ask(clips, shards.questions, answers, max_tokens=most, rejected=rejected)


def has_split(split: str, training: Training, shards: Shards) -> bool:
    """Whether there are such clips, and questions that fit about them where these are asked."""
    entries = read_manifest(shards.encoded, EncodedManifest).shards
    if split not in {entry.split for entry in entries}:
        return False
    if training.asking is None:
        return True
    with suppress(ShardError):
        return len(open_split(split, training, shards)) > 0
    return False


def tokenizer_of(training: Training, shards: Shards) -> CaptionTokenizer | AnswerTokenizer | None:
    """What turns text into tokens; of a training that goes on with a model that answers, its own.

    Raises CheckpointError where that one has its questions at another place.
    """
    if training.asking is None:
        return build_tokenizer(training.model)
    place, start = training.asking.place, training.params.start
    known = load_tokenizer_of(find_start(start)) if start else None
    if isinstance(known, AnswerTokenizer):
        if known.chat.place != place:
            raise CheckpointError(
                f"{start} was trained with questions {known.chat.place} the video, and here they "
                f"stand {place}: start from another model, or ask as there"
            )
        return known
    return build_answer_tokenizer(training.model, place, _texts(training.asking, shards))


def count_questions(training: Training, shards: Shards) -> dict[str, int]:
    """Of the questions about training clips: how many there are, and how many are too long."""
    reader = open_split("train", training, shards)
    assert isinstance(reader, AskedClips)
    too_long = reader.table.too_long
    return {"questions": len(reader) + too_long, "questions_too_long": too_long}


def contents_of(training: Training, shards: Shards) -> dict[str, list[str]]:
    """All that is trained on, by its hashes."""
    contents = {"encoded": _hashes(read_manifest(shards.encoded, EncodedManifest))}
    if training.params.input == "frames":
        contents["frames"] = _hashes(read_manifest(shards.frames, FrameManifest))
    if training.asking is not None:
        contents["questions"] = [_questions("train", training.asking, shards).digest]
    elif training.model.text != "none":
        keys = open_shards(shards.encoded, split="train").keys
        captions = CaptionTable(shards.captions or table_beside(shards.encoded), keys)
        contents["captions"] = [captions.digest()]
    return contents


def _hashes(manifest: Manifest) -> list[str]:
    return [entry.sha256 for entry in manifest.shards if entry.split == "train"]


def _questions(split: str, asking: Asking, shards: Shards) -> QuestionTable:
    assert shards.questions is not None
    keys = open_shards(shards.encoded, split=split).keys
    return read_questions(
        shards.questions,
        keys,
        wanted=lambda line: bool(line["rejected"].strip()) or not asking.rejected,
    )


def _texts(asking: Asking, shards: Shards) -> Iterator[str]:
    """Everything that training questions say."""
    table = _questions("train", asking, shards)
    for row in range(len(table)):
        line = table[row]
        yield from (line["question"], line["answer"], line["rejected"], *line["options"])
