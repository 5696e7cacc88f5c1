"""A model that answers, against plain computations without padding, memory or other clips."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fvlm.clips.tokenizer import AnswerTokenizer, Place
from fvlm.model.answers import MOST, answer_greedily, choose_option
from fvlm.model.foveated import FoveatedModel, PassOutput, ends_of
from tests import tiny
from tests.questions import ANSWERS, QUESTIONS, REJECTED, rows, tokenizer

MakeModel = Callable[..., FoveatedModel]
Clips = tuple[Tensor, Tensor]
T = 5
PLACES: tuple[Place, ...] = ("before", "after", "none")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # sequences of other lengths round otherwise


def plain_states(
    model: FoveatedModel, tokens: Tensor, output: PassOutput, clip: int, words: list[list[int]]
) -> Tensor:
    """States [S,H] of one clip of a pass, between the words before and those behind it."""
    visual, _ = model.read_frames(
        model.attention.cache_frames(tokens[clip]), output.queries[clip, None]
    )
    embed = model.language.get_input_embeddings()
    before, behind = (embed(torch.tensor(ids, dtype=torch.int64)) for ids in words)
    sequence = [before, model.mode_tokens[output.mode][None], visual[0], behind]
    states: Tensor = model.language(inputs_embeds=torch.cat(sequence)[None], use_cache=False)[0][0]
    return states


def pieces(words: AnswerTokenizer, clip: int, answer: str | None) -> list[list[int]]:
    """Token ids in front of the video and behind it."""
    asked = words([QUESTIONS[clip]], [answer])
    return [rows(asked.question)[0] if asked.question else [], rows(asked)[0]]


@pytest.mark.parametrize(
    ("place", "deep"), [("before", 0), ("before", 2), ("after", 0), ("none", 0)]
)
@torch.no_grad()
def test_the_loss_is_that_of_the_answers_tokens_in_one_plain_sequence(
    make_model: MakeModel, clips: Clips, place: Place, deep: int
) -> None:
    model = make_model(deep=deep, iterations=2, text="answer", tied=False)
    tokens, words = clips[0][:4], tokenizer(place)
    captions = words(QUESTIONS, ANSWERS)
    passes = model.run_passes(model.cache_clips(tokens, captions), 4, T, captions=captions)
    assert [output.caption is not None for output in passes] == [True, False, True]
    assert [output.mode for output in passes] == ["coarse", "fine", "fine"]
    for output in ends_of(passes):
        losses = model.caption_losses(output, captions)
        assert losses is not None
        for clip, answer in enumerate(ANSWERS):
            ids = pieces(words, clip, answer)
            states = plain_states(model, tokens, output, clip, ids)
            count = len(answer.split()) + 1  # with EOS
            said = states[-count - 1 : -1] @ model.words.T
            expected = F.cross_entropy(said, torch.tensor(ids[1][-count:]))
            torch.testing.assert_close(losses[clip], expected, **CLOSE)


@torch.no_grad()
def test_pooled_tokens_are_answered_from_alike(clips: Clips) -> None:
    language = tiny.llama(vocab_size=16, num_hidden_layers=2, initializer_range=0.2)
    model = tiny.foveated(pooled=4, text="answer", language=language)
    tokens, words = clips[0][:4], tokenizer("before")
    captions = words(QUESTIONS, ANSWERS)
    (output,) = model.run_passes(model.cache_clips(tokens, captions), 4, T, captions=captions)
    losses = model.caption_losses(output, captions)
    assert losses is not None
    for clip, answer in enumerate(ANSWERS):
        ids = pieces(words, clip, answer)
        count = len(answer.split()) + 1
        states = plain_states(model, tokens, output, clip, ids)
        assert len(states) == len(ids[0]) + 1 + 4 * T + len(ids[1])
        said = states[-count - 1 : -1] @ model.words.T
        expected = F.cross_entropy(said, torch.tensor(ids[1][-count:]))
        torch.testing.assert_close(losses[clip], expected, **CLOSE)


@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_a_clip_among_others_is_that_clip_alone(
    make_model: MakeModel, clips: Clips, place: Place
) -> None:
    model, words = make_model(text="answer"), tokenizer(place)
    tokens, latents = (part[:4] for part in clips)
    found = model(tokens, latents, words(QUESTIONS, ANSWERS))
    for clip in range(4):
        one = slice(clip, clip + 1)
        alone = model(tokens[one], latents[one], words(QUESTIONS[one], ANSWERS[one]))
        for name in ("coarse", "fine", "caption_coarse", "caption_fine"):
            torch.testing.assert_close(getattr(found, name)[one], getattr(alone, name), **CLOSE)


@torch.no_grad()
def test_only_what_stands_before_the_video_steers_what_is_looked_at(
    make_model: MakeModel, clips: Clips
) -> None:
    """Also with the answer behind it, which nothing before may see."""
    model, tokens = make_model(text="answer"), clips[0][:4]
    other = tuple(reversed(QUESTIONS))
    for place in PLACES:
        words = tokenizer(place)
        coarse, fine = zip(
            *(
                model.run_passes(model.cache_clips(tokens, captions), 4, T, captions=captions)
                for captions in (words(QUESTIONS, ANSWERS), words(other, REJECTED))
            ),
            strict=True,
        )
        assert torch.equal(coarse[0].queries, coarse[1].queries)
        assert torch.equal(fine[0].queries[:, 0], fine[1].queries[:, 0])  # q_init
        different = (fine[0].queries - fine[1].queries).abs().amax(-1)[:, 1:]
        if place == "before":
            assert different.min() > 1e-2
        else:
            assert different.max() < 1e-5
        for one, two in (coarse, fine):
            same = torch.allclose(one.predictor, two.predictor, **CLOSE)
            assert same == (place != "before")


@torch.no_grad()
def test_a_rejected_answer_stands_behind_the_same_question_and_video(
    make_model: MakeModel, clips: Clips
) -> None:
    model = make_model(text="answer")
    tokens, latents = (part[:4] for part in clips)
    for place in PLACES:
        words = tokenizer(place)
        chosen, rejected = words(QUESTIONS, ANSWERS), words(QUESTIONS, REJECTED)
        found = model(tokens, latents, chosen, rejected)
        for name in ("coarse", "fine"):
            for which, captions in (("caption", chosen), ("rejected", rejected)):
                alone = getattr(model(tokens, latents, captions), f"caption_{name}")
                torch.testing.assert_close(getattr(found, f"{which}_{name}"), alone, **CLOSE)
        assert not torch.allclose(found.caption_fine, found.rejected_fine, **CLOSE)
    assert model(tokens, latents, chosen).rejected_fine is None


def plain_greedy(
    model: FoveatedModel, tokens: Tensor, output: PassOutput, words: AnswerTokenizer
) -> tuple[list[int], list[float]]:
    """Likeliest tokens of the first question's answer, and their log-probabilities."""
    before, behind = pieces(words, 0, None)
    said, likelihoods = list[int](), list[float]()
    while len(said) < MOST and words.eos not in said:
        states = plain_states(model, tokens, output, 0, [before, behind + said])
        likely = torch.log_softmax(states[-1] @ model.words.T, dim=0)
        said.append(int(likely.argmax()))
        likelihoods.append(float(likely.max()))
    return said, likelihoods


@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_a_greedy_answer_is_the_likeliest_token_each_time(
    make_model: MakeModel, clips: Clips, place: Place
) -> None:
    """Its probability is the product; it ends with EOS, whichever token that is."""
    model, words, tokens = make_model(text="answer", tied=False), tokenizer(place), clips[0][:1]
    cache = model.cache_clips(tokens, words(QUESTIONS[:1], [None]))
    lengths = set()
    for output in model.run_passes(cache, 1, T):
        for eos in (0, plain_greedy(model, tokens, output, words)[0][2]):
            ending = AnswerTokenizer(words.tokenizer, eos, words.chat)
            said, likelihoods = plain_greedy(model, tokens, output, ending)
            found = answer_greedily(model, ending, cache, output, QUESTIONS[0])
            assert found.text == words.tokenizer.decode([token for token in said if token != eos])
            expected = float(torch.tensor(likelihoods).sum().exp())
            assert found.probability == pytest.approx(expected, rel=1e-3)
            lengths.add(len(said))
    assert max(lengths) == MOST
    assert min(lengths) < MOST


@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_the_option_of_the_least_loss_is_chosen(
    make_model: MakeModel, clips: Clips, place: Place
) -> None:
    """Its mean over tokens: a longer one is not the less likely for it."""
    model, words = make_model(text="answer"), tokenizer(place)
    tokens, latents = (part[:1] for part in clips)
    options = ["red", "the blue square", "left", "what is there", "a film"]
    cache = model.cache_clips(tokens, words(QUESTIONS[:1], [None]))
    for name, output in zip(("coarse", "fine"), model.run_passes(cache, 1, T), strict=True):
        losses = torch.cat(
            [
                getattr(model(tokens, latents, words(QUESTIONS[:1], [said])), f"caption_{name}")
                for said in options
            ]
        )
        for order in (slice(None), slice(None, None, -1)):
            found = choose_option(model, words, cache, output, QUESTIONS[0], options[order])
            assert found.text == options[int(losses.argmin())]
            expected = float(torch.softmax(-losses, dim=0).max())
            assert found.probability == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_every_weight_has_a_gradient(
    make_model: MakeModel, clips: Clips, place: Place, tied: bool
) -> None:
    """Under several processes a weight without one is an error; it may be zero."""
    model, words = make_model(text="answer", tied=tied), tokenizer(place)
    tokens, latents = (part[:4] for part in clips)
    found = model(tokens, latents, words(QUESTIONS, ANSWERS))
    total = found.caption_coarse.mean() + found.caption_fine.mean()
    (total + found.coarse.square().mean() + found.fine.square().mean()).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert torch.isfinite(value.grad).all(), name
    looked = model.to_query.weight.grad
    assert looked is not None
    assert looked.abs().sum() > 0
