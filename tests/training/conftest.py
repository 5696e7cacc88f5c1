"""A tiny foveated model, a corpus in memory, and a training over both."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaModel

from fvlm.clips.batch import Batch
from fvlm.clips.order import rows_at, trained_frames
from fvlm.clips.tokenizer import CaptionTokenizer, Place
from fvlm.core.io import hash_json
from fvlm.encoders.dino import DinoEncoder
from fvlm.model.captions import Text
from fvlm.model.foveated import FoveatedModel, Head
from fvlm.model.query_attention import DeepAttention, ShallowAttention
from fvlm.training.checkpoint import Checkpoints, TrainState
from fvlm.training.loop import Row, train
from fvlm.training.objective import Objective, batch_losses
from fvlm.training.optim import PreferParams, TrainParams, make_optimizer
from fvlm.training.preference import preference_losses
from fvlm.training.validation import Validation
from tests import questions

CLIPS, STORED, D, LATENT = 7, 4, 6, (2, 2, 2)
CAPTIONS = ("", "", "the dog sees a cat run", "", "", "dog", "a cat sees the dog run away")
WORDS = ("</s>", "a", "cat", "sees", "the", "dog", "run", "away")
PREFER = PreferParams(
    beta=0.1,
    loss="sigmoid",
    label_smoothing=0.0,
    sft_weight=0.0,
    batch_size=4,
    max_samples=8,
    warmup_samples=0,
    lr=1e-3,
    lambda_coarse=1.0,
)


class Trial:
    """One training that can be run again and again; records what it saw."""

    params = TrainParams(
        input="features",
        start="",
        encoder_lr=0.0,
        query_lr_factor=1.0,
        gradient_checkpointing="none",
        num_frames=3,
        frames="random",
        batch_size=3,
        gradient_accumulation_steps=2,
        max_samples=36,
        max_hours=1.0,
        lr=1e-2,
        warmup_samples=12,
        schedule="cosine",
        weight_decay=0.01,
        max_grad_norm=1.0,
        token_noise=0.0,
        lambda_coarse=1.0,
        lambda_recon=0.1,
        dtype="float32",
        compile="none",
        seeds=[0],
        coarse_only=False,
        checkpoint_samples=12,
        validate_samples=0,
        parallel="ddp",
    )

    def __init__(self, root: Path) -> None:
        self.root = root
        drawn = torch.Generator().manual_seed(11)
        self.tokens = torch.randn(CLIPS, STORED, 5, D, generator=drawn).half()
        # Not centred on zero, so that there is something to learn.
        self.latents = (torch.randn(CLIPS, STORED, *LATENT, generator=drawn) + 1).half()
        self.dropout = 0.0
        self.head: Head = "film"
        self.captions = {f"clip{number}": caption for number, caption in enumerate(CAPTIONS)}
        self.late: bool | None = None
        self.any_length = False  # whether longer trainings go on from its checkpoints
        self.validation: Validation | None = None
        self.objective: Objective = batch_losses
        self.seen: list[str] = []
        self.on_step: Callable[[Row], None] = lambda _: None
        self.on_forward: Callable[[int], None] = lambda _: None  # with the forwards done before
        self.model = self.make_model()

    def make_model(self) -> FoveatedModel:
        torch.manual_seed(4)
        sizes: dict[str, Any] = {"vocab_size": 2, "hidden_size": 8, "intermediate_size": 8}
        sizes["attention_dropout"] = self.dropout
        language = LlamaModel(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2))
        language.set_input_embeddings(torch.nn.Identity())
        attention = ShallowAttention(D, temperature=1.0)
        return FoveatedModel(
            language=language,
            attention=attention,
            latent_shape=LATENT,
            fine_iterations=1,
            head=self.head,
            head_channels=8,
        )

    def give_residual_head(self) -> None:
        """From now on its model adds to a copy of the latent before."""
        self.head = "residual"
        self.model = self.make_model()

    def give_captions(self, text: Any, *, tied: bool = True) -> None:
        """From now on its model reads or predicts captions, and its batches hold them."""
        load_batch = self.load_batch
        words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = CaptionTokenizer(words, 0, text, 6)

        def load(positions: range) -> Batch:
            batch = load_batch(positions)
            captions = tokenizer([self.captions[key] for key in batch.keys])
            return replace(batch, captions=captions)

        self._give_words(text, len(WORDS), tied=tied)
        self.__dict__ |= {"load_batch": load}

    def give_answers(self, place: Place, *, prefers: bool = False) -> None:
        """From now on its model answers a question about each clip; or learns which of two answers
        is better, held to a model that found the worse one likelier the longer it is.
        """
        load_batch, words = self.load_batch, questions.tokenizer(place)

        def load(positions: range) -> Batch:
            batch = load_batch(positions)
            rows = [int(key.removeprefix("clip")) % 4 for key in batch.keys]
            asked, good, bad = (
                [texts[row] for row in rows]
                for texts in (questions.QUESTIONS, questions.ANSWERS, questions.REJECTED)
            )
            batch = replace(batch, captions=words(asked, good))
            if not prefers:
                return batch
            said = torch.tensor([[-3.0, -1.0 * len(text)] for text in bad])
            reference = said[:, None].expand(-1, 2, -1)
            return replace(batch, rejected=words(asked, bad), reference=reference)

        self._give_words("answer", len(questions.WORDS))
        self.__dict__ |= {"load_batch": load}
        if prefers:
            self.objective = partial(preference_losses, prefer=PREFER)

    def _give_words(self, text: Text, count: int, *, tied: bool = True) -> None:
        make_model = self.make_model

        def make() -> FoveatedModel:
            plain = make_model()
            config = LlamaConfig(
                vocab_size=count,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                initializer_range=0.3,  # so large that a caption matters
            )
            return FoveatedModel(
                language=LlamaModel(config),
                attention=plain.attention,
                latent_shape=LATENT,
                fine_iterations=1,
                head_channels=8,
                text=text,
                output=None if tied else torch.nn.Linear(8, count, bias=False),
            )

        self.__dict__ |= {"make_model": make}

    def give_encoder(self) -> None:
        """From now on its model takes frames, and its batches hold them, made of the tokens.

        Its last block reads the queries, and all of it is trained, recomputed in the backward pass.
        """
        make_model, load_batch = self.make_model, self.load_batch
        self.change(input="frames", encoder_lr=1e-3, gradient_checkpointing="encoder")

        def make() -> FoveatedModel:
            plain = make_model()
            config = Dinov2Config(
                hidden_size=D,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
            )
            encoder = DinoEncoder(Dinov2Model(config))
            tail = encoder.cut(1)
            assert tail is not None
            model = FoveatedModel(
                language=plain.language,
                attention=DeepAttention(tail),
                latent_shape=LATENT,
                fine_iterations=1,
                encoder=encoder,
            )
            model.train_encoder()
            return model

        def load(positions: range) -> Batch:
            batch = load_batch(positions)
            values = batch.inputs.flatten(2).repeat(1, 1, 7)[..., : 3 * 8 * 8] * 50 + 128
            frames = values.clamp(0, 255).to(torch.uint8).unflatten(2, (3, 8, 8))
            return replace(batch, inputs=frames)

        self.__dict__ |= {"make_model": make, "load_batch": load}

    def change(self, **changes: object) -> "Trial":
        self.params = self.params.model_copy(update=changes)
        return self

    def load_batch(self, positions: range) -> Batch:
        seed, count = self.params.seed, self.params.num_frames
        rows = rows_at(positions, clips=CLIPS, seed=seed)
        frames = trained_frames(positions, stored=STORED, count=count, seed=seed, choice="random")
        keys = [f"clip{row}" for row in rows]
        self.seen += keys
        return Batch(self.tokens[rows[:, None], frames], self.latents[rows[:, None], frames], keys)

    def checkpoints(self) -> Checkpoints:
        exclude = {"max_hours", "checkpoint_samples", "parallel"}
        exclude |= {"max_samples"} if self.any_length else set()
        identity = {"train": self.params.model_dump(exclude=exclude)}
        return Checkpoints(self.root, identity, hash_json(identity)[:20])

    def run(self) -> TrainState:
        """Train a new model from whatever state is saved, as a new process would."""
        self.model = self.make_model()
        forwards = itertools.count()
        self.model.register_forward_pre_hook(lambda *_: self.on_forward(next(forwards)))
        torch.manual_seed(torch.seed())
        return train(
            self.model,
            self.load_batch,
            self.params,
            checkpoints=self.checkpoints(),
            device=torch.device("cpu"),
            on_step=lambda row: self.on_step(row),
            late=self.late,
            validation=self.validation,
            objective=self.objective,
        )

    def last_state(self) -> TrainState:
        """The state of the newest checkpoint; its weights are then those of `self.model`."""
        self.model = self.make_model()
        optimizer = make_optimizer(self.model, self.params)
        return self.checkpoints().resume(self.model, optimizer)

    def last_checkpoint(self) -> dict[str, bytes]:
        """The bytes of the newest checkpoint: weights, moments, step and history."""
        folder = max(self.checkpoints().folder.glob("step-*"))
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def small_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's million parameters would spend the time of these tests on saving them."""
    monkeypatch.setattr("fvlm.model.film_head.FILM_HIDDEN", 8)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path / "trial")


@pytest.fixture
def make_trial(tmp_path: Path) -> Callable[[str], Trial]:
    return lambda name: Trial(tmp_path / name)
