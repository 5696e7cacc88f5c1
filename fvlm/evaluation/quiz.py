"""Answers of every arm to the same questions about the same clips.

    coarse, fine      the two passes, as trained
    autoregressive    the fine pass with its own queries, frame by frame
    static_in_fine    q_static at every frame: is it the query, or just a second pass?
    shuffled          queries predicted on another group's clip: is it *this* clip's query?
    random            random directions of the predicted queries' lengths
    other_question    queries predicted for another question about the same clip: is it *what is
                      asked* that steers them? The answer is to this question in any case
    blind             another group's clip in the place of this one

An answer is the option of the highest mean log-probability over its tokens and its end; without
options, an arm only has a loss. Frame 1 keeps q_init, which nothing predicts.

Axes: B questions, T frames, D token width, O options.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from fvlm.clips.batch import Batch, Captions
from fvlm.clips.tokenizer import AnswerTokenizer
from fvlm.core.params import Params
from fvlm.core.progress import Progress
from fvlm.evaluation.losses import other_group, random_queries
from fvlm.model.autoregressive import run_autoregressive
from fvlm.model.foveated import ClipCache, FoveatedModel, Mode
from fvlm.statistics.quiz import Answered, Question

LoadRows = Callable[[Sequence[int]], Batch]
NAN = torch.nan
LENT = {"shuffled": "clip", "blind": "clip", "other_question": "question"}  # by whom, see partners
ARMS = (
    *("coarse", "fine", "autoregressive", "static_in_fine", "shuffled", "random"),
    *("other_question", "blind"),
)


class QuizParams(Params):
    """Section `quiz` of params.yaml."""

    batch_size: int = Field(ge=1)
    max_questions: int = Field(ge=0)
    bootstrap_samples: int = Field(ge=100)
    seed: int


@dataclass(frozen=True)
class Choice:
    """What may be said to B questions: `texts`, each a list of B, and which of them count.

    is_option bool [B,O]; right, rejected int64 [B]: where these stand among the texts, or -1.
    """

    texts: list[list[str | None]]
    is_option: Tensor
    right: Tensor
    rejected: Tensor

    @classmethod
    def of(cls, questions: Sequence[Question]) -> "Choice":
        """Options, or the answer alone; then the rejected answer, where it is no option."""
        rows = [list(asked["options"]) or [asked["answer"]] for asked in questions]
        counts = [len(asked["options"]) for asked in questions]
        for row, asked in zip(rows, questions, strict=True):
            if asked["rejected"] and asked["rejected"] not in row:
                row.append(asked["rejected"])
        most = max(map(len, rows))
        return cls(
            texts=[[row[n] if n < len(row) else None for row in rows] for n in range(most)],
            is_option=torch.tensor([[n < count for n in range(most)] for count in counts]),
            right=torch.tensor(
                [row.index(asked["answer"]) for row, asked in zip(rows, questions, strict=True)]
            ),
            rejected=torch.tensor(
                [
                    row.index(asked["rejected"]) if asked["rejected"] else -1
                    for row, asked in zip(rows, questions, strict=True)
                ]
            ),
        )

    def outcome(self, scores: Tensor) -> dict[str, Tensor]:
        """right, loss and gained [B] of scores [B,O], and the option that was chosen, or -1."""
        own = scores.gather(1, self.right[:, None])[:, 0]
        worse = scores.gather(1, self.rejected.clamp(min=0)[:, None])[:, 0]
        has_options = self.is_option.any(1) & ~own.isnan()
        no_pair = (self.rejected < 0) | own.isnan()
        chosen = scores.masked_fill(~self.is_option, -torch.inf).argmax(1)
        return {
            "right": (chosen == self.right).cpu().double().masked_fill(~has_options, NAN),
            "loss": -own,
            "gained": (own > worse).cpu().double().masked_fill(no_pair, NAN),
            "chosen": chosen.masked_fill(~has_options, -1),
        }


@dataclass(frozen=True)
class Quizzed:
    """What is asked: the questions, the row of each one's clip, and the group of that."""

    questions: Sequence[Question]
    clips: Sequence[int]
    groups: Sequence[str]

    def partners(self) -> dict[str, list[int]]:
        """For each row the one whose clip and queries, or whose question, stand in for its own."""
        asked = [question["question"] for question in self.questions]
        return {"clip": other_group(self.groups), "question": other_question(self.clips, asked)}


@torch.inference_mode()
def answer(
    model: FoveatedModel,
    tokenizer: AnswerTokenizer,
    quizzed: Quizzed,
    load: LoadRows,
    arms: Sequence[str],
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> Answered:
    """What the arms of this model answer to all questions.

    load: the clips of these rows, without text. The result does not depend on `batch_size` beyond
    float rounding.
    """
    found = {arm: dict[str, list[Tensor]]() for arm in arms}
    count, partners = len(quizzed.questions), quizzed.partners()
    asker = _Asker(model, tokenizer, quizzed, load, device)
    with Progress("quiz", total=count, unit="question") as progress:
        for start in range(0, count, batch_size):
            rows = list(range(start, min(start + batch_size, count)))
            choice = Choice.of([quizzed.questions[row] for row in rows])
            looks = asker.looks(rows, partners, seed)
            for arm in arms:
                scores = asker.score(looks[arm](), rows, choice)
                scores[[partners[LENT[arm]][row] < 0 for row in rows] if arm in LENT else []] = NAN
                for name, values in choice.outcome(scores).items():
                    found[arm].setdefault(name, []).append(values)
            progress.advance(len(rows))
    joined = {
        arm: {name: torch.cat(values).numpy() for name, values in by_name.items()}
        for arm, by_name in found.items()
    }
    options = [question["options"] for question in quizzed.questions]
    return Answered(
        **{
            name: {arm: values[name] for arm, values in joined.items()}
            for name in ("right", "loss", "gained")
        },
        said={
            arm: [
                row[number] if number >= 0 else ""
                for row, number in zip(options, values["chosen"].tolist(), strict=True)
            ]
            for arm, values in joined.items()
        },
    )


Look = tuple[ClipCache, Tensor, Mode]  # what is looked at, the queries [B,T,D], the pass


@dataclass(frozen=True)
class _Asker:
    """Asks a model a batch of questions, whose numbers are `rows`."""

    model: FoveatedModel
    tokenizer: AnswerTokenizer
    quizzed: Quizzed
    load: LoadRows
    device: torch.device

    def looks(
        self, rows: list[int], partners: dict[str, list[int]], seed: int
    ) -> dict[str, Callable[[], Look]]:
        """How each arm looks at the clips."""
        model, batch = self.model, self._clips(rows)
        cache, predicted = self._predict(batch, rows)
        static = model.static_queries(*predicted.shape[:2])
        by_clip, by_question = (
            [own if other[own] < 0 else other[own] for own in rows]
            for other in (partners["clip"], partners["question"])
        )

        def with_queries(queries: Tensor) -> Look:
            return cache, queries, "fine"

        def blind() -> Look:
            return (*self._predict(self._clips(by_clip), rows), "fine")

        return {
            "coarse": lambda: (cache, static, "coarse"),
            "fine": lambda: with_queries(predicted),
            "autoregressive": lambda: with_queries(
                run_autoregressive(model, cache, *predicted.shape[:2]).queries
            ),
            "static_in_fine": lambda: with_queries(static),
            "shuffled": lambda: with_queries(self._predict(self._clips(by_clip), by_clip)[1]),
            "random": lambda: with_queries(
                random_queries(predicted, keys=self._names(rows, batch), seed=seed)
            ),
            "other_question": lambda: with_queries(self._predict(batch, by_question)[1]),
            "blind": blind,
        }

    def score(self, look: Look, rows: list[int], choice: Choice) -> Tensor:
        """Mean log-probabilities [B,O] of all that may be said, float64 on the CPU."""
        cache, queries, mode = look
        asked = self._asked(rows)
        scores = list[Tensor]()
        for texts in choice.texts:
            captions = self._to_device(self.tokenizer(asked, texts))
            output = self.model.run_pass(cache, queries, mode=mode, predicted=captions)
            losses = self.model.caption_losses(output, captions)
            assert losses is not None
            missing = torch.tensor([text is None for text in texts])
            scores.append((-losses).cpu().double().masked_fill(missing, -torch.inf))
        return torch.stack(scores, dim=1)

    def _predict(self, batch: Batch, rows: list[int]) -> tuple[ClipCache, Tensor]:
        """The clips behind the questions of `rows`, and the queries [B,T,D] predicted there."""
        captions = self._to_device(self.tokenizer(self._asked(rows), [None] * len(rows)))
        cache = self.model.cache_clips(batch.inputs, captions)
        return cache, self.model.run_passes(cache, *batch.latents.shape[:2])[-1].queries

    def _clips(self, rows: list[int]) -> Batch:
        return self.load([self.quizzed.clips[row] for row in rows]).to(self.device)

    def _asked(self, rows: list[int]) -> list[str]:
        return [self.quizzed.questions[row]["question"] for row in rows]

    def _names(self, rows: list[int], batch: Batch) -> list[str]:
        ids = (self.quizzed.questions[row]["id"] for row in rows)
        return [f"{key} {name}" for key, name in zip(batch.keys, ids, strict=True)]

    def _to_device(self, captions: Captions) -> Captions:
        return captions.to(self.device, non_blocking=False)


def other_question(clips: Sequence[int], questions: Sequence[str]) -> list[int]:
    """For every row the next one, cyclically, of another question about the same clip; else -1."""
    by_clip: dict[int, list[int]] = {}
    for row, clip in enumerate(clips):
        by_clip.setdefault(clip, []).append(row)
    found = [-1] * len(clips)
    for rows in by_clip.values():
        for place, row in enumerate(rows):
            following = rows[place + 1 :] + rows[:place]
            others = (other for other in following if questions[other] != questions[row])
            found[row] = next(others, -1)
    return found
