"""A tiny project with questions about its clips, which `instruct`, `prefer` and `quiz` read."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvlm.core.io import sample_key
from fvlm.core.rows import write_rows
from fvlm.shards.footage import hash_footage
from pipeline import paths
from tests import tiny
from tests.questions import question
from tests.tiny import set_params

ROOT = Path(__file__).parents[2]
STORED, TOKENS, LATENT = 4, (10, 16), (4, 4, 4)
CLIPS, HELD_OUT = 6, 2
TOO_LONG = "what is there " * 8
PARAMS: dict[str, dict[str, Any]] = {
    "encode": {"dino": "assets/tiny", "vae": "assets/tiny"},  # as the shards' manifest says
    "model": {
        "llm": "untrained:32x1",
        "llm_layers": 0,
        "query_layers": 0,
        "head": "film",
        "head_channels": 8,
    },
    "train": {"num_frames": 3, "frames": "random", "max_samples": 8, "warmup_samples": 4},
    "instruct": {
        "start": "",
        "batch_size": 4,
        "max_samples": 12,
        "warmup_samples": 4,
        "checkpoint_samples": 4,
        "max_text_tokens": 16,
    },
    "prefer": {"batch_size": 4, "max_samples": 12, "warmup_samples": 4},
}
Line = dict[str, Any]


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with shards and questions about their clips; the working directory.

    The head's million parameters would spend the time of these tests on saving them.
    """
    monkeypatch.setattr("fvlm.model.film_head.FILM_HIDDEN", 8)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, PARAMS)
    write_shards()
    write_questions(asked())
    # No tracking here: starting mlflow takes longer than all else.
    (tmp_path / ".state").mkdir()
    (tmp_path / ".state/mlflow").write_text("in the way")
    return tmp_path


def write_shards() -> None:
    rng = np.random.default_rng(0)
    names = [video(number) for number in range(CLIPS + HELD_OUT)]
    samples: list[tuple[str, dict[str, Any]]] = [
        (
            sample_key(name),
            {
                "tokens.npy": rng.standard_normal((STORED, *TOKENS)).astype(np.float16),
                "latents.npy": rng.standard_normal((STORED, *LATENT)).astype(np.float16),
                "json": {
                    "video_id": name,
                    "footage": hash_footage(rng.integers(0, 256, (STORED, 3, 8, 8), np.uint8)),
                },
            },
        )
        for name in names
    ]
    shards = {"train-000000.tar": samples[:CLIPS], "val-000000.tar": samples[CLIPS:]}
    tiny.write_shards(
        paths.ENCODED, shards, tiny.encoded_manifest((STORED, *TOKENS), (STORED, *LATENT))
    )
    tiny.write_shards(paths.FRAMES, {}, tiny.frame_manifest(STORED, 3, 32, 32))


def video(number: int) -> str:
    return f"number {number}.mp4"


def asked(*, rejected: str = "blue") -> list[Line]:
    """Two questions about each clip, one of them with a rejected answer; one more is too long."""
    lines = []
    for number in range(CLIPS + HELD_OUT):
        key, name = sample_key(video(number)), f"what moves in {number}?"
        lines += [
            question(key, 0, video_id=video(number), question=name, rejected=rejected),
            question(key, 1, video_id=video(number), question="how?", answer="fast", options=[]),
        ]
    return [*lines, question(lines[0]["key"], 2, video_id=video(0), question=TOO_LONG)]


def write_questions(lines: list[Line]) -> None:
    write_rows(paths.QUESTIONS, lines)
