"""The train stage with frames through a trained encoder, and with captions, stopped and resumed."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fvlm.clips.latents import fit_ar1, training_latents
from fvlm.core.errors import FvlmError
from fvlm.core.io import sample_key
from fvlm.core.params import load_params
from fvlm.encoders.dino import DinoEncoder, load_dino
from fvlm.model.film_head import ResidualHead
from fvlm.model.query_attention import DeepAttention
from fvlm.model.saved import load_caption_tokenizer, load_model
from fvlm.shards.manifest import EncodedManifest, read_manifest, write_manifest
from pipeline import paths, train
from tests import tiny
from tests.pipeline.test_train import (
    CAPTIONS,
    CLIPS,
    RESULTS,
    STORED,
    handed_back,
    write_captions,
    write_inputs,
)
from tests.tiny import set_params

ROOT = Path(__file__).parents[2]
D, L, SIZE, PATCH = 16, 2, 24, 8


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def give_frames(project: Path) -> None:
    """Decode shards of the same clips, and the encoder that their tokens were made with."""
    sizes: dict[str, Any] = {"hidden_size": D, "num_attention_heads": 2, "num_hidden_layers": L}
    Dinov2Model(Dinov2Config(**sizes, image_size=SIZE, patch_size=PATCH)).save_pretrained(
        project / "weights/dino"
    )
    _, found = load_dino("weights/dino")
    set_params(project, {"encode": {"dino": "weights/dino"}})
    manifest = read_manifest(paths.ENCODED, EncodedManifest)
    dino = manifest.dino.model_copy(update=asdict(found))
    write_manifest(paths.ENCODED, manifest.model_copy(update={"dino": dino}))
    rng = np.random.default_rng(1)
    samples = [
        (
            sample_key(f"number {number}.mp4"),
            {
                "frames.npy": rng.integers(0, 256, (STORED, 3, SIZE, SIZE), np.uint8),
                "json": {"video_id": f"number {number}.mp4"},
            },
        )
        for number in range(CLIPS)
    ]
    frames = tiny.frame_manifest(STORED, 3, SIZE, SIZE)
    tiny.write_shards(paths.FRAMES, {"train-000000.tar": samples}, frames)


def give_words(project: Path) -> None:
    """A language model that comes with its tokenizer and output head."""
    words = ("</s>", "a", "cat", "sees", "the", "dog")
    sizes: dict[str, Any] = {"vocab_size": len(words), "hidden_size": 24, "intermediate_size": 32}
    config = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(project / "weights/llm")
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.save_pretrained(project / "weights/llm")


def assert_parts_equal_one_run(project: Path) -> None:
    """Train in one run; then again, stopped after the first two steps. The results stay."""
    train.main()
    whole = [(project / path).read_bytes() for path in RESULTS]
    for folder in (".state/train", "models"):
        shutil.rmtree(project / folder)
    set_params(project, {"train": {"max_hours": 1e-9}})
    for _ in range(2):
        with pytest.raises(SystemExit, match="75"):
            train.main()
    set_params(project, {"train": {"max_hours": 1.0}})
    train.main()
    assert [(project / path).read_bytes() for path in RESULTS] == whole


def learned(tail: int) -> list[bool]:
    """Of every encoder weight that frames reach: does it differ from the pretrained one?"""
    pretrained, _ = load_dino("weights/dino")
    model = load_model(paths.MODEL)
    assert isinstance(model.encoder, DinoEncoder)
    assert isinstance(model.attention, DeepAttention)
    halves = (model.encoder, model.attention.tail)
    expected = (pretrained, pretrained.cut(tail))
    return [
        not torch.equal(value, dict(other.named_parameters())[name])
        for half, other in zip(halves, expected, strict=True)
        if other is not None
        for name, value in half.named_parameters()
        if "mask_token" not in name
    ]


def test_frames_train_the_encoder_and_both_halves_of_it(project: Path) -> None:
    give_frames(project)
    frames = {
        "input": "frames",
        "token_noise": 0.0,
        "encoder_lr": 1e-3,
        "gradient_checkpointing": "encoder",
        "compile": "none",
    }
    set_params(project, {"model": {"query_layers": 1}, "train": frames})
    assert_parts_equal_one_run(project)
    assert load_model(paths.MODEL).input == "frames"
    moved = learned(1)
    assert len(moved) > 30
    assert all(moved)
    set_params(project, {"train": {"encoder_lr": 0.0}})
    train.main()
    assert not any(learned(1))


@pytest.mark.parametrize("text", ["condition", "caption"])
def test_captions_are_read_and_their_tokenizer_is_saved(project: Path, text: str) -> None:
    give_words(project)
    set_params(project, {"model": {"text": text}, "train": {"dtype": "bfloat16"}})
    assert_parts_equal_one_run(project)
    assert load_model(paths.MODEL).text == text
    tokenizer = load_caption_tokenizer(paths.MODEL)
    assert tokenizer is not None
    ends = [0] if text == "caption" else []
    assert tokenizer([CAPTIONS[0]]).ids[0].tolist() == [1, 2, *ends]
    found = json.loads(paths.TRAIN_METRICS.read_text())
    assert ("loss_caption_fine" in found) == (text == "caption")
    before = paths.MODEL.joinpath("model.safetensors").read_bytes()
    write_captions(project, [f"{CAPTIONS[0]} {CAPTIONS[1]}"] * 64)
    train.main()
    assert paths.MODEL.joinpath("model.safetensors").read_bytes() != before
    paths.CAPTIONS.unlink()
    with pytest.raises(FvlmError, match=r"captions.jsonl not found; run `dvc repro filter`"):
        train.main()


def test_without_text_captions_change_no_training(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main()
    write_captions(project, ["other"] * 64)
    train.main()
    assert handed_back() in capsys.readouterr().out


def test_a_residual_head_is_trained_from_ar1_on(project: Path) -> None:
    """At a rate of almost nothing it stays what the training clips gave it."""
    still = {"lr": 1e-12, "query_lr_factor": 1.0, "warmup_samples": 0}
    set_params(project, {"model": {"head": "residual"}, "train": still})
    train.main()
    head = load_model(paths.MODEL).head
    assert isinstance(head, ResidualHead)
    frames = load_params(train.Sections).train.num_frames
    mean, gain = fit_ar1(training_latents(paths.ENCODED, frames))
    assert head.gain.item() == pytest.approx(gain, rel=1e-5)
    torch.testing.assert_close(head.mean.double(), mean, rtol=1e-5, atol=1e-6)
