"""A residual head begins as AR(1) of the training clips; words, of a model without text, as they
were pretrained; what answers goes on with its own tokenizer.
"""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from fvlm.clips.tokenizer import AnswerTokenizer, Place
from fvlm.core.errors import CheckpointError
from fvlm.evaluation.baselines import fit_baselines
from fvlm.model.build import Architecture, build_model
from fvlm.model.film_head import ResidualHead
from fvlm.model.foveated import FoveatedModel, frame_losses
from fvlm.training.data import Asking, Shards, Training, tokenizer_of
from fvlm.training.start import load_start, start_as_ar1
from tests import tiny
from tests.questions import tokenizer
from tests.training.conftest import Trial

MANIFEST = tiny.encoded_manifest((4, 10, 16), (4, 4, 5, 5))
UNTRAINED = "untrained:32x1"


def untrained() -> FoveatedModel:
    model = tiny.foveated(head="residual")
    for parameter in model.head.after[-1].parameters():
        torch.nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize("decay", [0.9, 0.0])
@torch.no_grad()
def test_an_untrained_model_predicts_what_ar1_predicts(decay: float) -> None:
    torch.manual_seed(0)
    latents = [torch.randn(3, 6, 4, 4, 4) + 1, torch.randn(2, 6, 4, 4, 4) + 1]
    for batch in latents:
        for t in range(1, 6):
            batch[:, t] = 1 + decay * (batch[:, t - 1] - 1) + 0.3 * (batch[:, t] - 1)
    model, drawn = untrained(), torch.random.get_rng_state()
    start_as_ar1(model, latents)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert isinstance(model.head, ResidualHead)
    assert model.head.gain.item() == pytest.approx(decay, abs=0.1)
    found = model(torch.randn(3, 6, 10, 16), latents[0])
    expected = fit_baselines(latents).losses(latents[0])["ar1"]
    for prediction in (found.coarse, found.fine):
        losses = frame_losses(prediction, latents[0])
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def test_no_latent_is_read_for_another_head() -> None:
    unread = iter([torch.ones(1, 2, 4, 4, 4)])
    start_as_ar1(tiny.foveated(), unread)
    assert next(unread) is not None


def build(llm: str, text: str, *, seed: int) -> tuple[FoveatedModel, Architecture]:
    """As after a training: no weight is what it was."""
    torch.manual_seed(seed)
    params = tiny.model_params(llm, text=text, head_channels=8)
    model, architecture = build_model(params, MANIFEST, vocabulary=16 if text == "answer" else 1)
    return model, architecture


def scatter(model: FoveatedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("llm", ["tied", "untied", UNTRAINED])
def test_from_a_model_without_text_come_all_weights_but_those_of_words(
    tmp_path: Path, llm: str
) -> None:
    if llm != UNTRAINED:
        config = tiny.llama(vocab_size=16, tie_word_embeddings=llm == "tied")
        LlamaForCausalLM(config).save_pretrained(tmp_path / llm)
        llm = str(tmp_path / llm)
    first, described = build(llm, "none", seed=1)
    scatter(first)
    tiny.save_model(first, described, tmp_path / "start")
    model, architecture = build(llm, "answer", seed=2)
    pretrained = {name: value.clone() for name, value in model.state_dict().items()}
    load_start(str(tmp_path / "start"), model, architecture, tokenizer("before"))
    found, saved = model.state_dict(), first.state_dict()
    words = found.keys() - saved.keys()
    untied = {"output.weight"} if llm.endswith("untied") else set()
    assert words == {"language.embed_tokens.weight"} | untied
    for name, value in found.items():
        assert torch.equal(value, (pretrained if name in words else saved)[name]), name


def test_a_start_that_differs_in_more_than_words_is_refused(tmp_path: Path) -> None:
    tiny.save_model(*build("untrained:32x2", "none", seed=1), tmp_path / "start")
    model, architecture = build(UNTRAINED, "answer", seed=2)
    with pytest.raises(CheckpointError, match=r"language.num_hidden_layers is 2 there and 1"):
        load_start(str(tmp_path / "start"), model, architecture, tokenizer("before"))


def test_a_model_that_answers_goes_on_with_its_own_words(tmp_path: Path) -> None:
    """And with another tokenizer or without text it is none to go on with."""
    first, architecture = build(UNTRAINED, "answer", seed=1)
    scatter(first)
    start, words = str(tmp_path / "start"), tokenizer("before")
    tiny.save_model(first, architecture, tmp_path / "start", tokenizer=words)

    def training(place: Place) -> Training:
        return Training(
            tiny.model_params(UNTRAINED, text="answer"),
            Trial.params.model_copy(update={"start": start}),
            coarse_only=False,
            folder=tmp_path / "model",
            title="prefer",
            asking=Asking(place, max_tokens=16),
        )

    nowhere = Shards(tmp_path, tmp_path)  # no question has to be read for it
    known = tokenizer_of(training("before"), nowhere)
    assert isinstance(known, AnswerTokenizer)
    assert (known.chat, known.eos) == (words.chat, words.eos)
    assert known.tokenizer.to_str() == words.tokenizer.to_str()
    others: tuple[Place, ...] = ("after", "none")
    for place in others:
        refusal = f"was trained with questions before the video, and here they stand {place}"
        with pytest.raises(CheckpointError, match=refusal):
            tokenizer_of(training(place), nowhere)
    model, _ = build(UNTRAINED, "answer", seed=2)
    load_start(start, model, architecture, known)
    saved = first.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    known.tokenizer.add_tokens(["another"])
    with pytest.raises(CheckpointError, match="is another model: tokenizer is"):
        load_start(start, model, architecture, known)
    plain, described = build(UNTRAINED, "none", seed=2)
    with pytest.raises(CheckpointError, match="is another model"):
        load_start(start, plain, described, None)
