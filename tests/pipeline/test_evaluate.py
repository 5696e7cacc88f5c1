"""The evaluate stage and the verdict table on real shards and a tiny saved model."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from transformers import LlamaConfig, LlamaForCausalLM

from fvlm.errors import FvlmError, ParamsError, ShardError
from fvlm.io import write_json
from fvlm.models.build import build_model, save_model
from fvlm.models.foveated import ModelParams
from fvlm.shards.manifest import write_manifest
from fvlm.shards.write import sample_key, write_shard
from pipeline import evaluate, verdict

STORED, TOKENS, LATENT = 6, (10, 16), (4, 4, 4)
TABLES = (evaluate.CLIPS, evaluate.FRAMES, evaluate.MOTION)
PICTURES = (evaluate.BY_FRAME, evaluate.BY_MOTION, evaluate.CONTROLS)
ARTEFACTS = (evaluate.METRICS, *TABLES, *PICTURES)

Project = Callable[[int], None]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Makes a project folder with a model and shards of that many val clips, and goes there."""

    def make(clips: int) -> None:
        monkeypatch.chdir(tmp_path)
        write_params()
        manifest = write_encode_folder(clips)
        language = LlamaConfig(
            vocab_size=4,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            initializer_range=0.2,
        )
        LlamaForCausalLM(language).save_pretrained("llm")
        params = ModelParams(
            llm="llm",
            llm_layers=0,
            query_layers=0,
            query_sees_itself=True,
            temperature=1.0,
            fine_iterations=1,
            head_channels=16,
            text="none",
            max_text_tokens=8,
        )
        model, config = build_model(params, manifest)
        save_model(model.state_dict(), config, evaluate.MODEL)
        write_json(verdict.FILTER, {"inputs": 9, "accepted": 7, "accepted_train": 2})
        write_json(verdict.TRAIN, {"steps": 3})

    return make


def write_params(*, batch_size: int = 2, num_frames: int = 4) -> None:
    section = {
        "batch_size": batch_size,
        "num_frames": num_frames,
        "bootstrap_samples": 200,
        "seed": 0,
    }
    Path("params.yaml").write_text(json.dumps({"evaluate": section}))


def write_encode_folder(clips: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def samples(split: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        video_ids = [f"{split}/number {number}.mp4" for number in range(count)]
        return [
            (
                sample_key(video_id),
                {
                    "tokens.npy": rng.standard_normal((STORED, *TOKENS)).astype(np.float16),
                    "latents.npy": rng.standard_normal((STORED, *LATENT)).astype(np.float16),
                    "json": {"video_id": video_id},
                },
            )
            for video_id in video_ids
        ]

    shards = []
    for split, count in (("train", 2), ("val", clips)):
        if count:
            name = f"{split}-000000.tar"
            facts = write_shard(evaluate.SHARDS / name, samples(split, count))
            shards.append({"name": name, "split": split, "fingerprint": split, **asdict(facts)})
    manifest = {
        "stage": "encode",
        "tokens": {"dtype": "float16", "shape": [STORED, *TOKENS]},
        "latents": {"dtype": "float16", "shape": [STORED, *LATENT]},
        "dino": {"blocks": 2, "layer": 2},
        "vae": {},
        "shards": shards,
        "quarantined": [],
    }
    write_manifest(evaluate.SHARDS, manifest)
    return manifest


def metrics() -> dict[str, Any]:
    return dict(json.loads(evaluate.METRICS.read_text()))


def test_metrics_are_flat_and_finite_and_agree_with_the_tables(project: Project) -> None:
    project(7)
    evaluate.main()
    found = metrics()
    assert found["videos"] == found["clips"] == 7
    for name, value in found.items():
        assert isinstance(value, str | int | float), name
        assert isinstance(value, str) or math.isfinite(value), name
    assert found["coarse_fine_ratio"] == pytest.approx(found["loss_coarse"] / found["loss_fine"])
    assert found["improvement_pct"] == pytest.approx(100 * (found["coarse_fine_ratio"] - 1))
    assert found["coarse_fine_ratio_low"] <= found["coarse_fine_ratio"]
    assert found["coarse_fine_ratio"] <= found["coarse_fine_ratio_high"]
    clips, frames, motion = (list(csv.DictReader(path.read_text().splitlines())) for path in TABLES)
    for rows in (clips, frames):
        mean = np.mean([float(row["loss_fine"]) for row in rows])
        assert mean == pytest.approx(found["loss_fine"])
    assert [row["frame"] for row in frames] == ["1", "2", "3", "4"]
    assert frames[0]["loss_persistence"] == ""
    assert len({row["key"] for row in clips}) == 7
    assert sum(int(row["clips"]) for row in motion) == 7


def test_running_again_gives_the_same_bytes(project: Project) -> None:
    project(3)
    evaluate.main()
    first = {path: path.read_bytes() for path in ARTEFACTS}
    evaluate.main()
    assert {path: path.read_bytes() for path in ARTEFACTS} == first


def test_pictures_can_be_read(project: Project) -> None:
    project(2)
    evaluate.main()
    for path in PICTURES:
        picture = imread(path)
        assert picture.shape[:2] == (540, 960)
        assert picture[..., :3].std() > 0.05  # not blank


def test_one_video_gives_a_ratio_without_interval_and_no_verdict(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project(1)
    evaluate.main()
    found = metrics()
    assert found["coarse_fine_ratio"] is not None
    assert found["coarse_fine_ratio_low"] is None
    assert found["ratio_shuffled"] is None
    assert found["verdict"] == "inconclusive"
    verdict.main()
    assert "no interval" in " ".join(capsys.readouterr().out.split())


def test_the_verdict_table_shows_the_ratio_with_interval_and_controls(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project(7)
    evaluate.main()
    verdict.main()
    printed, found = capsys.readouterr().out, metrics()
    for name in ("coarse_fine_ratio", "coarse_fine_ratio_dynamic", "shuffled_fine_ratio_dynamic"):
        assert f"{found[name]:.4f}" in printed
        assert f"{found[name + '_low']:.4f} to {found[name + '_high']:.4f}" in printed
    for arm in ("random", "static_in_fine", "shuffled", "persistence", "autoregressive"):
        assert f"{found['loss_' + arm]:.5f}" in printed
        assert f"{found['ratio_' + arm]:.4f}" in printed
    assert found["verdict"].capitalize() in printed
    assert "held-out videos compared: 7" in printed


def test_more_frames_than_stored_are_refused(project: Project) -> None:
    project(2)
    write_params(num_frames=STORED + 1)
    with pytest.raises(ParamsError, match=r"evaluate.num_frames \(7\) must be <= .* \(6\)"):
        evaluate.main()


def test_without_val_clips_the_message_says_so(project: Project) -> None:
    project(0)
    with pytest.raises(ShardError, match="no val shards"):
        evaluate.main()


def test_a_verdict_before_evaluation_names_the_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FvlmError, match=r"metrics/evaluate.json not found"):
        verdict.main()
