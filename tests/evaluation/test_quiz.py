"""Every arm of a quiz against plain passes of the model, in batches of any size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fvlm.clips.batch import Batch
from fvlm.evaluation.losses import random_queries
from fvlm.evaluation.quiz import ARMS, Choice, Quizzed, answer, other_question
from fvlm.model.autoregressive import run_autoregressive
from fvlm.model.foveated import FoveatedModel
from fvlm.statistics.quiz import Answered, Question
from tests import tiny
from tests.questions import question, tokenizer

Clips = tuple[Tensor, Tensor]
WORDS, CPU, SEED = tokenizer("before"), torch.device("cpu"), 3
OPTIONS = ["red", "the blue square", "left", "a red film"]
SAID = [
    ("what is there ?", "red", OPTIONS),
    ("left ?", "left", ["left", "right"]),
    ("what is the red square ?", "the blue square", OPTIONS[:3]),
    ("right ?", "a film", []),  # told in words of its own
    ("what is there ?", "left", OPTIONS),
    ("left ?", "right", ["left", "right"]),
    ("right ?", "left", ["left", "right"]),
]
CLIP_OF = [0, 0, 1, 1, 1, 2, 3]  # clips 2 and 3 have one question each
GROUPS = ["film", "film", "film", "film", "film", "video", "video"]


def questions() -> list[Question]:
    rows = zip(SAID, CLIP_OF, GROUPS, strict=True)
    return [
        question(f"clip-{clip}", number, question=asked, answer=right, options=options, group=group)
        | {"rejected": "blue" if number in (0, 3) else options[-1] if number == 1 else ""}
        for number, ((asked, right, options), clip, group) in enumerate(rows)
    ]


QUIZZED = Quizzed(questions(), CLIP_OF, GROUPS)


@pytest.fixture
def model() -> FoveatedModel:
    """Two fine passes, so that a last one differs from a first one."""
    torch.manual_seed(1)
    language = tiny.llama(vocab_size=16, num_hidden_layers=2, initializer_range=0.2)
    return tiny.foveated(text="answer", iterations=2, language=language)


def ask(
    model: FoveatedModel, clips: Clips, *, batch_size: int = 3, arms: Sequence[str] = ARMS
) -> Answered:
    def load(rows: Sequence[int]) -> Batch:
        chosen = list(rows)
        return Batch(clips[0][chosen], clips[1][chosen], [f"clip-{row}" for row in rows])

    return answer(model, WORDS, QUIZZED, load, arms, batch_size=batch_size, seed=SEED, device=CPU)


def queries_of(model: FoveatedModel, clips: Clips, clip: int, asked: str) -> Tensor:
    """Queries of the last fine pass for a question about a clip."""
    cache = model.cache_clips(clips[0][clip, None], WORDS([asked], [None]))
    return model.run_passes(cache, 1, 5)[-1].queries


@torch.no_grad()
def plain_scores(model: FoveatedModel, clips: Clips, row: int, arm: str) -> dict[str, float]:
    """Log-probability of all that may be said, one at a time; `other`: see QUIZZED.partners()."""
    asked, clip = QUIZZED.questions[row], CLIP_OF[row]
    own = asked["question"]
    partner = QUIZZED.partners()["clip"][row]
    others = QUIZZED.partners()["question"][row]
    seen = CLIP_OF[partner] if arm == "blind" else clip
    cache = model.cache_clips(clips[0][seen, None], WORDS([own], [None]))
    queries = {
        "coarse": lambda: model.static_queries(1, 5),
        "static_in_fine": lambda: model.static_queries(1, 5),
        "fine": lambda: queries_of(model, clips, clip, own),
        "blind": lambda: queries_of(model, clips, seen, own),
        "autoregressive": lambda: run_autoregressive(model, cache, 1, 5).queries,
        "shuffled": lambda: queries_of(
            model, clips, CLIP_OF[partner], QUIZZED.questions[partner]["question"]
        ),
        "other_question": lambda: queries_of(
            model, clips, clip, QUIZZED.questions[others]["question"]
        ),
        "random": lambda: random_queries(
            queries_of(model, clips, clip, own),
            keys=[f"clip-{clip} {asked['id']}"],
            seed=SEED,
        ),
    }[arm]()
    scores = {}
    for text in dict.fromkeys([*asked["options"], asked["answer"], asked["rejected"]]):
        captions = WORDS([own], [text])
        mode: Any = "coarse" if arm == "coarse" else "fine"
        output = model.run_pass(cache, queries, mode=mode, predicted=captions)
        losses = model.caption_losses(output, captions)
        assert losses is not None
        scores[text] = -float(losses)
    return scores


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_plain_pass(model: FoveatedModel, clips: Clips, arm: str) -> None:
    found = ask(model, clips, arms=[arm])
    for row, asked in enumerate(QUIZZED.questions):
        if arm == "other_question" and QUIZZED.partners()["question"][row] < 0:
            continue
        scores = plain_scores(model, clips, row, arm)
        assert found.loss[arm][row] == pytest.approx(-scores[asked["answer"]], rel=1e-4)
        best = max(asked["options"], key=scores.__getitem__, default="")
        assert found.said[arm][row] == best
        right = float(best == asked["answer"]) if best else np.nan
        np.testing.assert_equal(found.right[arm][row], right)
        gained = np.nan
        if asked["rejected"]:
            gained = float(scores[asked["answer"]] > scores[asked["rejected"]])
        np.testing.assert_equal(found.gained[arm][row], gained)


def test_the_arms_differ_and_no_batch_changes_anything(model: FoveatedModel, clips: Clips) -> None:
    found = {size: ask(model, clips, batch_size=size) for size in (1, 3, 7)}
    for size in (1, 7):
        for arm in ARMS:
            one, other = found[3], found[size]
            np.testing.assert_allclose(one.loss[arm], other.loss[arm], rtol=1e-5, err_msg=arm)
            np.testing.assert_equal(one.right[arm], other.right[arm])
            assert one.said[arm] == other.said[arm]
    values = [found[3].loss[arm][0] for arm in ARMS]
    assert len({round(float(value), 4) for value in values}) == len(ARMS)


def test_what_no_partner_can_lend_is_undefined(model: FoveatedModel, clips: Clips) -> None:
    found = ask(model, clips, arms=["other_question"])
    alone = [row for row, clip in enumerate(CLIP_OF) if clip in (2, 3)]
    for values in (found.right, found.loss, found.gained):
        assert np.isnan(values["other_question"][alone]).all()
    assert [found.said["other_question"][row] for row in alone] == ["", ""]
    assert np.isfinite(np.delete(found.loss["other_question"], alone)).all()


def test_another_question_about_the_same_clip_is_lent() -> None:
    assert QUIZZED.partners()["question"] == [1, 0, 3, 4, 2, -1, -1]
    assert QUIZZED.partners()["clip"] == [5, 5, 5, 5, 5, 0, 0]
    asked = ["what ?", "what ?", "where ?", "what ?"]
    assert other_question([0, 0, 0, 1], asked) == [2, 2, 0, -1]


def test_what_may_be_said_and_which_of_it_counts() -> None:
    chosen = Choice.of(questions()[:4])
    assert [[text[row] for text in chosen.texts] for row in range(4)] == [
        [*OPTIONS, "blue"],
        ["left", "right", None, None, None],
        [*OPTIONS[:3], None, None],
        ["a film", "blue", None, None, None],
    ]
    assert chosen.is_option.sum(1).tolist() == [4, 2, 3, 0]
    assert chosen.right.tolist() == [0, 0, 1, 0]
    assert chosen.rejected.tolist() == [4, 1, -1, 1]
    scores = torch.tensor(
        [
            [-1.0, -2, -3, -4, -0.5],  # the rejected answer is the likeliest, but no option
            [-2.0, -1, -torch.inf, -torch.inf, -torch.inf],
            [torch.nan] * 5,
            [-1.0, -2, -torch.inf, -torch.inf, -torch.inf],
        ]
    )
    found = chosen.outcome(scores)
    np.testing.assert_equal(found["right"].numpy(), [1, 0, np.nan, np.nan])
    np.testing.assert_equal(found["loss"].numpy(), [1, 2, np.nan, 1])
    np.testing.assert_equal(found["gained"].numpy(), [0, 0, np.nan, 1])
    assert found["chosen"].tolist() == [0, 1, -1, -1]
