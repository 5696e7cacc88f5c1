"""Captions before and after the video, against plain computations without padding or sharing."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F

from fvlm.clips.batch import Captions
from fvlm.clips.tokenizer import CaptionTokenizer
from fvlm.core.device import autocast
from fvlm.model.autoregressive import run_autoregressive
from fvlm.model.captions import Prefix, caption_losses, token_losses
from fvlm.model.foveated import FoveatedModel, Mode

MakeModel = Callable[..., FoveatedModel]
Clips = tuple[Tensor, Tensor]
WORDS = ["</s>", "a", "cat", "sees", "the", "dog", "run", "away"]
# One of each kind: ordinary, none at all, cut, and as long as allowed.
CAPTIONS = ["a cat sees", "", "the dog sees a cat run away", " a dog  sees the dog run "]


def tokenizer(text: Literal["condition", "caption"], *, max_tokens: int = 6) -> CaptionTokenizer:
    """Words by number; EOS is 0, which is also what padding happens to be."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return CaptionTokenizer(words, 0, text, max_tokens)


def rows(captions: Captions) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(captions.ids, captions.mask, strict=True)]


def test_captions_before_the_video_are_padded_on_the_left() -> None:
    found = tokenizer("condition")(CAPTIONS)
    assert rows(found) == [[1, 2, 3], [], [4, 5, 3, 1, 2, 6], [1, 5, 3, 4, 5, 6]]
    assert found.mask[0].tolist() == [False] * 3 + [True] * 3


def test_captions_after_the_video_end_with_eos_unless_cut() -> None:
    found = tokenizer("caption")(CAPTIONS)
    assert rows(found) == [[1, 2, 3, 0], [], [4, 5, 3, 1, 2, 6], [1, 5, 3, 4, 5, 6, 0]]
    assert found.mask[0].tolist() == [True] * 4 + [False] * 3


@pytest.mark.parametrize("text", ["condition", "caption"])
def test_without_any_caption_there_are_columns_of_padding(
    text: Literal["condition", "caption"],
) -> None:
    found = tokenizer(text)(["", "  "])
    assert found.ids.shape == (2, 2)
    assert not found.mask.any()


@pytest.mark.parametrize("count", [1, 5, 700])
def test_fused_cross_entropy_equals_the_plain_form(count: int) -> None:
    states = torch.randn(count, 24, requires_grad=True)
    weight = torch.randn(600, 24, requires_grad=True)
    targets, share = torch.randint(600, (count,)), torch.rand(count)
    found = token_losses(states, weight, targets)
    gradients = torch.autograd.grad((found * share).sum(), (states, weight))
    plain = F.cross_entropy(states @ weight.T, targets, reduction="none")
    expected = torch.autograd.grad((plain * share).sum(), (states, weight))
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_logits_are_not_kept_for_the_backward_pass() -> None:
    n, H, V = 2000, 8, 3000
    states, weight = torch.randn(n, H, requires_grad=True), torch.randn(V, H, requires_grad=True)
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        losses = token_losses(states, weight, torch.randint(V, (n,)))
    assert sum(kept.values()) < 0.05 * n * V * losses.element_size()
    assert kept


def test_logits_are_made_of_supervised_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    captions, counts = tokenizer("caption")(CAPTIONS), []

    def noted(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        counts.append((len(states), len(targets)))
        return token_losses(states, weight, targets)

    monkeypatch.setattr("fvlm.model.captions.token_losses", noted)
    caption_losses(torch.randn(4, 7, 24), torch.randn(8, 24), captions)
    supervised = sum(map(len, rows(captions)))
    assert counts == [(supervised, supervised)]
    assert supervised < captions.ids.numel()


def test_fused_cross_entropy_under_autocast_is_close_and_float32() -> None:
    states = torch.randn(50, 24, requires_grad=True)
    weight = torch.randn(600, 24, requires_grad=True)
    targets = torch.randint(600, (50,))
    with autocast(torch.device("cpu"), "bfloat16"):
        found = token_losses(states, weight, targets)
    assert found.dtype == torch.float32
    plain = F.cross_entropy(states @ weight.T, targets, reduction="none")
    torch.testing.assert_close(found, plain, rtol=0.02, atol=0.1)
    gradient, expected = (torch.autograd.grad(x.mean(), weight)[0] for x in (found, plain))
    assert gradient.dtype == torch.float32
    assert (gradient - expected).norm() < 0.02 * expected.norm()


def test_a_clips_caption_loss_is_its_mean_and_zero_without_a_caption() -> None:
    captions = tokenizer("caption")(CAPTIONS)
    states, weight = torch.randn(4, 7, 24), torch.randn(8, 24)
    found = caption_losses(states, weight, captions)
    assert found[1] == 0
    for clip, ids in enumerate(rows(captions)):
        if ids:
            logits = states[clip, : len(ids)] @ weight.T
            torch.testing.assert_close(found[clip], F.cross_entropy(logits, torch.tensor(ids)))


def plain_pass(
    model: FoveatedModel, tokens: Tensor, queries: Tensor, mode: Mode, ids: list[int]
) -> Tensor:
    """States of one clip from one whole sequence without padding, memory or mask [S,H]."""
    visual, _ = model.read_frames(model.attention.cache_frames(tokens), queries[None])
    words = model.language.get_input_embeddings()(torch.tensor(ids, dtype=torch.int64))
    video = torch.cat([model.mode_tokens[mode][None], visual[0]])
    parts = [words, video] if model.text == "condition" else [video, words]
    states: Tensor = model.language(inputs_embeds=torch.cat(parts)[None], use_cache=False)[0][0]
    return states


@pytest.mark.parametrize("deep", [0, 2])
@pytest.mark.parametrize("text", ["condition", "caption"])
@torch.no_grad()
def test_every_pass_equals_one_sequence_without_padding(
    make_model: MakeModel, clips: Clips, text: Literal["condition", "caption"], deep: int
) -> None:
    model = make_model(deep=deep, iterations=2, text=text, tied=False)
    captions = tokenizer(text)(CAPTIONS)
    tokens, T = clips[0][:4], 5
    passes = model.run_passes(model.cache_clips(tokens, captions), 4, T, captions=captions)
    modes: tuple[Mode, ...] = ("coarse", "fine", "fine")
    for output, mode in zip(passes, modes, strict=True):
        for clip, ids in enumerate(rows(captions)):
            states = plain_pass(model, tokens[clip], output.queries[clip], mode, ids)
            first = len(ids) if text == "condition" else 0
            expected = states[first : first + T]
            torch.testing.assert_close(output.predictor[clip], expected, rtol=1e-4, atol=1e-4)
            if output.caption is not None and ids:
                said = states[T : T + len(ids)]
                torch.testing.assert_close(
                    output.caption[clip, : len(ids)], said, rtol=1e-4, atol=1e-4
                )
    told = [output.caption is not None for output in passes]
    assert told == ([True, False, True] if text == "caption" else [False] * 3)


@torch.no_grad()
def test_autoregressive_after_a_caption_equals_a_sequential_reference(
    make_model: MakeModel, clips: Clips
) -> None:
    model, captions = make_model(deep=1, text="condition"), tokenizer("condition")(CAPTIONS)
    tokens, T = clips[0][:4], 5
    found = run_autoregressive(model, model.cache_clips(tokens, captions), 4, T)
    for clip, ids in enumerate(rows(captions)):
        queries: list[Tensor] = [model.q_init]
        for t in range(1, T):
            known = torch.stack(queries)
            states = plain_pass(model, tokens[clip, :t], known, "fine", ids)
            queries.append(model.to_query(states[-1]))
        states = plain_pass(model, tokens[clip], torch.stack(queries), "fine", ids)
        expected = states[len(ids) : len(ids) + T]
        torch.testing.assert_close(found.queries[clip], torch.stack(queries), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.predictor[clip], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_caption_after_the_video_changes_no_latent_and_one_before_it_does(
    make_model: MakeModel, clips: Clips
) -> None:
    tokens, latents = (part[:4] for part in clips)
    other = list(reversed(CAPTIONS))
    for words, same in ((tokenizer("caption"), True), (tokenizer("condition"), False)):
        model = make_model(text=words.text)
        found, changed = (model(tokens, latents, words(texts)) for texts in (CAPTIONS, other))
        for one, two in ((found.coarse, changed.coarse), (found.fine, changed.fine)):
            assert torch.allclose(one, two, rtol=1e-4, atol=1e-5) == same
    before = make_model(text="condition")
    silent, plain = before(tokens, latents, words([""] * 4)), make_model()(tokens, latents)
    torch.testing.assert_close(silent.fine, plain.fine, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_eos_is_a_target_and_padding_is_not(make_model: MakeModel, clips: Clips) -> None:
    """Both have the same token id here: only the mask tells them apart."""
    model, (tokens, latents) = make_model(text="caption"), clips
    short, longer = (tokenizer("caption")(["a cat", said]) for said in ("", CAPTIONS[3]))
    alone = tokenizer("caption")(["a cat"])
    for captions in (short, longer):
        found = model(tokens[:2], latents[:2], captions).caption_fine
        expected = model(tokens[:1], latents[:1], alone).caption_fine
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    without = Captions(alone.ids[:, :2], alone.mask[:, :2])
    two, three = (model(tokens[:1], latents[:1], c).caption_fine for c in (without, alone))
    passes = model.run_passes(model.cache_clips(tokens[:1], alone), 1, 5, captions=alone)
    states = passes[-1].caption
    assert states is not None
    eos = F.cross_entropy(states[0, 2] @ model.language.embed_tokens.weight.T, torch.tensor(0))
    torch.testing.assert_close(3 * three[0], 2 * two[0] + eos, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("text", ["condition", "caption"])
@pytest.mark.parametrize("said", [CAPTIONS, [""] * 4])
def test_every_weight_has_a_gradient_also_without_any_caption(
    make_model: MakeModel, clips: Clips, text: str, tied: bool, said: list[str]
) -> None:
    """Under several processes a weight without one is an error; it may be zero."""
    model = make_model(text=text, tied=tied or text == "condition")
    tokens, latents = (part[:4] for part in clips)
    words = tokenizer("condition" if text == "condition" else "caption")
    found = model(tokens, latents, words(said))
    loss = found.fine.square().mean() + found.coarse.square().mean()
    for part in (found.caption_coarse, found.caption_fine):
        loss = loss if part is None else loss + part.mean()
    loss.backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert torch.isfinite(value.grad).all(), name
    embeddings = model.language.embed_tokens.weight.grad
    assert embeddings is not None
    assert (embeddings.abs().sum() > 0) == (said is CAPTIONS)


@torch.no_grad()
def test_captions_are_asked_for_by_models_with_text_alone(
    make_model: MakeModel, clips: Clips
) -> None:
    with pytest.raises(TypeError, match=r"model.text is caption, got captions None"):
        make_model(text="caption")(*clips)
    with pytest.raises(TypeError, match=r"model.text is none, got captions Captions"):
        make_model()(*clips, tokenizer("caption")(["a"] * 7))


@torch.no_grad()
def test_a_pass_leaves_the_shared_prefix_as_it_is(make_model: MakeModel, clips: Clips) -> None:
    model, captions = make_model(text="condition"), tokenizer("condition")(CAPTIONS)
    cache = model.cache_clips(clips[0][:4], captions)
    assert isinstance(cache.prefix, Prefix)
    queries = model.static_queries(4, 5)
    first = model.run_pass(cache, queries, mode="fine")
    run_autoregressive(model, cache, 4, 5)
    again = model.run_pass(cache, queries, mode="fine")
    assert torch.equal(first.predictor, again.predictor)
    assert all(keys.shape[2] == captions.ids.shape[1] for keys, _ in cache.prefix.blocks)
