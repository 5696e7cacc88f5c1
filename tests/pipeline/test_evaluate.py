"""The evaluate stage and the verdict table on real shards and a tiny saved model."""

import csv
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from transformers import LlamaForCausalLM

from fvlm.cli import verdict
from fvlm.clips.order import evaluated_frames
from fvlm.core.document import write_figures
from fvlm.core.errors import FvlmError, ParamsError, ShardError
from fvlm.core.io import read_json, sample_key, write_json
from fvlm.core.seeding import generator
from fvlm.model.build import build_model
from fvlm.model.foveated import ModelParams
from fvlm.model.hub import CONFIG
from fvlm.shards.footage import hash_footage
from fvlm.shards.manifest import EncodedManifest, read_manifest, write_manifest
from fvlm.shards.read import open_shards
from pipeline import evaluate, paths
from tests import tiny

STORED, TOKENS, LATENT = 6, (10, 16), (4, 4, 4)
TABLES = (paths.BY_CLIP, paths.BY_FRAME, paths.BY_MOTION)
PICTURES = (paths.BY_FRAME_PLOT, paths.BY_MOTION_PLOT, paths.CONTROLS_PLOT)
ARTEFACTS = (paths.EVALUATION, paths.EVALUATE_METRICS, *TABLES, *PICTURES)

Project = Callable[[int], None]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Makes a project folder with a model and shards of that many val clips, and goes there."""

    def make(clips: int) -> None:
        monkeypatch.chdir(tmp_path)
        write_params()
        manifest = write_encode_folder(clips)
        LlamaForCausalLM(tiny.llama(initializer_range=0.2)).save_pretrained("llm")
        params = tiny.model_params("llm")
        save_trained(params, manifest, paths.MODEL)
        write_json(paths.FILTER_METRICS, {"inputs": 9, "accepted": 7, "accepted_train": 2})
        write_json(paths.TRAIN_METRICS, {"steps": 3})

    return make


def save_trained(
    params: ModelParams,
    manifest: EncodedManifest,
    folder: Path,
    *,
    seed: int = 0,
    lambda_coarse: float = 1.0,
) -> None:
    """A model as `pipeline.train` leaves it, with weights of its own."""
    torch.manual_seed(seed)
    coarse_only = folder.is_relative_to(paths.COARSE_ONLY)
    pooled = int(folder.relative_to(paths.POOLED).parts[0]) if paths.POOLED in folder.parents else 0
    model, architecture = build_model(
        params, manifest, coarse_only=coarse_only, pooled_tokens=pooled
    )
    tiny.save_model(model, architecture, folder, seed=seed, lambda_coarse=lambda_coarse)


def write_params(*, batch_size: int = 2, num_frames: int = 4, max_clips: int = 0) -> None:
    section = {
        "batch_size": batch_size,
        "num_frames": num_frames,
        "max_clips": max_clips,
        "bootstrap_samples": 200,
        "seed": 0,
    }
    Path("params.yaml").write_text(json.dumps({"evaluate": section}))


def write_encode_folder(clips: int, *, seen: int = 0) -> EncodedManifest:
    """Two training clips, and held-out ones, of which the first `seen` show the same footage."""
    rng = np.random.default_rng(0)

    def samples(split: str, count: int) -> list[tuple[str, dict[str, Any]]]:
        video_ids = [f"{split}/number {number}.mp4" for number in range(count)]
        return [
            (
                sample_key(video_id),
                {
                    "tokens.npy": rng.standard_normal((STORED, *TOKENS)).astype(np.float16),
                    "latents.npy": rng.standard_normal((STORED, *LATENT)).astype(np.float16),
                    "json": {"video_id": video_id, "footage": footage(split, number)},
                },
            )
            for number, video_id in enumerate(video_ids)
        ]

    def footage(split: str, number: int) -> str:
        source = split if split == "train" or number >= seen else "train"
        frames = generator(0, source, number).integers(0, 256, (STORED, 3, 8, 8), np.uint8)
        return hash_footage(frames)

    counts = {"train": 2, "val": clips}
    shards = {f"{name}-000000.tar": samples(name, n) for name, n in counts.items() if n}
    manifest = tiny.encoded_manifest((STORED, *TOKENS), (STORED, *LATENT))
    return tiny.write_shards(paths.ENCODED, shards, manifest)


def metrics() -> dict[str, Any]:
    return dict(json.loads(paths.EVALUATION.read_text()))


def test_metrics_are_flat_and_finite_and_agree_with_the_tables(project: Project) -> None:
    project(7)
    evaluate.main()
    found = metrics()
    assert found["videos"] == found["clips"] == 7
    weights = paths.MODEL / "model.safetensors"
    assert found["weights"] == hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    for name, value in found.items():
        assert isinstance(value, str | int | float), name
        assert isinstance(value, str) or math.isfinite(value), name
    wanted = {"loss_ar1", "loss_mean", "ar1_fine_ratio_dynamic", "mean_fine_ratio_dynamic"}
    wanted |= {f"attention_cls_share_{name}" for name in ("coarse", "fine", "autoregressive")}
    assert wanted <= set(found)
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


def test_the_figures_for_git_are_rounded_and_the_verdict_rests_on_none_of_them(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project(7)
    evaluate.main()
    found, rounded = metrics(), read_json(paths.EVALUATE_METRICS)
    assert list(rounded) == list(found)
    for name, value in rounded.items():
        assert value == (float(f"{found[name]:.4g}") if isinstance(value, float) else found[name])
    assert rounded != found
    # An interval that begins just above where a ratio counts, and rounded at 1.
    above = {name: 1.2 for name in found if "_fine_ratio_" in name}
    edge = above | {"coarse_fine_ratio_dynamic_low": 1.00012, "verdict": "one_training"}
    write_json(paths.EVALUATION, found | edge)
    write_figures(paths.EVALUATE_METRICS, found | edge)
    assert read_json(paths.EVALUATE_METRICS)["coarse_fine_ratio_dynamic_low"] == 1
    capsys.readouterr()
    verdict.main([])
    printed = " ".join(capsys.readouterr().out.split())
    assert "One training: over frames 3 and later" in printed
    assert "the whole interval is above 1" in printed


def add_trained(folder: Path, *, seed: int) -> None:
    params = ModelParams.model_validate(read_json(paths.MODEL / CONFIG)["model"])
    save_trained(params, read_manifest(paths.ENCODED, EncodedManifest), folder, seed=seed)


def test_a_model_without_fine_passes_becomes_an_arm_and_a_control(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project(7)
    evaluate.main()
    before = metrics()
    add_trained(paths.COARSE_ONLY, seed=5)
    evaluate.main()
    found = metrics()
    changed = {"statement"}  # counts the same, but the control is not beaten
    assert {name: found[name] for name in before.keys() - changed} == {
        name: before[name] for name in before.keys() - changed
    }
    ratios = (
        "ratio_coarse_only",
        "ratio_coarse_only_dynamic",
        "coarse_only_fine_ratio_dynamic",
        "train_coarse_only_fine_ratio_dynamic",
    )
    assert {name for name in found if "coarse_only" in name} == {
        "loss_coarse_only",
        *(f"{name}{end}" for name in ratios for end in ("", "_low", "_high")),
    }
    assert found["loss_coarse_only"] != found["loss_coarse"]
    verdict.main([])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{found['loss_coarse_only']:.5f}" in printed
    assert "not shown to beat" in printed
    assert "coarse pass of a model trained without fine passes" in printed.split("not shown")[1]


def test_pooled_tokens_become_arms_and_no_controls(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project(7)
    evaluate.main()
    before = metrics()
    for count in (1, 4):
        add_trained(paths.POOLED / str(count), seed=5)
    evaluate.main()
    found = metrics()
    assert {name: found[name] for name in before} == before  # the statement, too
    assert {name for name in found.keys() - before.keys() if "pooled_4" in name} == {
        "loss_pooled_4",
        *(
            f"{name}{end}"
            for name in (
                "ratio_pooled_4",
                "ratio_pooled_4_dynamic",
                "pooled_4_fine_ratio_dynamic",
                "pooled_4_gap_closed",
            )
            for end in ("", "_low", "_high")
        ),
    }
    losses = [found[f"loss_{arm}"] for arm in ("coarse", "pooled_1", "pooled_4")]
    assert len(set(losses)) == 3
    verdict.main([])
    printed = " ".join(capsys.readouterr().out.split())
    assert "4 pooled tokens a frame, no query" in printed
    assert "1 pooled token a frame, no query: " in printed


def test_a_twin_with_the_same_weights_has_the_same_coarse_loss(project: Project) -> None:
    project(3)
    add_trained(paths.COARSE_ONLY, seed=0)
    evaluate.main()
    found = metrics()
    assert found["loss_coarse_only"] == pytest.approx(found["loss_coarse"], rel=1e-6)
    assert found["ratio_coarse_only"] == pytest.approx(1.0, rel=1e-6)


def test_seeds_are_replicates(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project(7)
    single: dict[int, dict[str, Any]] = {}
    evaluate.main()
    single[0] = metrics()
    for seed in (3, 11):
        add_trained(paths.MODEL / f"seed-{seed}", seed=seed)
    evaluate.main()
    found = metrics()
    assert found["seeds"] == 3
    assert found["clips"] == found["videos"] == 7
    ratios = [found[f"coarse_fine_ratio_dynamic_seed_{seed}"] for seed in (0, 3, 11)]
    assert ratios[0] == pytest.approx(single[0]["coarse_fine_ratio_dynamic"])
    assert len(set(ratios)) == 3
    assert min(ratios) < found["coarse_fine_ratio_dynamic"] < max(ratios)
    clips, frames, motion = (list(csv.DictReader(path.read_text().splitlines())) for path in TABLES)
    assert len({row["key"] for row in clips}) == len(clips) == 7
    assert {row["video_id"] for row in clips} == {f"val/number {n}.mp4" for n in range(7)}
    for rows in (clips, frames):
        mean = np.mean([float(row["loss_fine"]) for row in rows])
        assert mean == pytest.approx(found["loss_fine"])
    assert sum(int(row["clips"]) for row in motion) == 7
    verdict.main([])
    assert "for 3 steps, with each of 3 seeds; held-out" in capsys.readouterr().out


def test_baselines_are_fitted_on_training_clips_at_the_evaluated_frames(project: Project) -> None:
    project(3)
    evaluate.main()
    kept = open_shards(paths.ENCODED, split="train")
    frames = evaluated_frames(stored=STORED, count=4)
    training = kept.read(range(2), fields=("latents",), frames=frames)["latents"]
    held_out = open_shards(paths.ENCODED, split="val")
    latents = held_out.read(range(3), fields=("latents",), frames=frames)["latents"]
    errors = (latents.astype(float) - training.astype(float).mean(axis=(0, 1))) ** 2
    assert metrics()["loss_mean"] == pytest.approx(errors.mean(), rel=1e-5)


def exchange_splits(folder: Path) -> None:
    manifest = read_manifest(folder, EncodedManifest)
    train, val = manifest.shards
    (folder / train.name).rename(folder / "aside")
    (folder / val.name).rename(folder / train.name)
    (folder / "aside").rename(folder / val.name)
    now_train = val.model_copy(update={"split": train.split, "name": train.name})
    now_val = train.model_copy(update={"split": val.split, "name": val.name})
    write_manifest(folder, manifest.model_copy(update={"shards": [now_train, now_val]}))


def test_what_is_said_of_training_clips_is_measured_on_these(project: Project) -> None:
    """With the splits exchanged, both figures are, too."""
    project(2)
    evaluate.main()
    before = metrics()
    exchange_splits(paths.ENCODED)
    evaluate.main()
    after, name = metrics(), "coarse_fine_ratio_dynamic"
    assert before[name] != before[f"train_{name}"]
    assert after[name] == pytest.approx(before[f"train_{name}"], rel=1e-6)
    assert after[f"train_{name}"] == pytest.approx(before[name], rel=1e-6)


def test_a_coarse_pass_without_weight_in_the_loss_gives_no_verdict(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project(7)
    params = ModelParams.model_validate(read_json(paths.MODEL / CONFIG)["model"])
    manifest = read_manifest(paths.ENCODED, EncodedManifest)
    save_trained(params, manifest, paths.MODEL, lambda_coarse=0.0)
    evaluate.main()
    assert metrics()["coarse_trained"] is False
    verdict.main([])
    assert "train.lambda_coarse: 0" in " ".join(capsys.readouterr().out.split())


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
        assert picture.shape[0] >= 540
        assert picture.shape[1] == 960
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
    verdict.main([])
    assert "no interval" in " ".join(capsys.readouterr().out.split())


def test_the_verdict_table_shows_the_ratio_with_interval_and_controls(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project(7)
    evaluate.main()
    verdict.main([])
    printed, found = capsys.readouterr().out, metrics()
    for name in ("coarse_fine_ratio", "coarse_fine_ratio_dynamic", "shuffled_fine_ratio_dynamic"):
        assert f"{found[name]:.4f}" in printed
        assert f"{found[name + '_low']:.4f} to {found[name + '_high']:.4f}" in printed
    for arm in ("random", "static_in_fine", "shuffled", "persistence", "autoregressive"):
        assert f"{found['loss_' + arm]:.5f}" in printed
        assert f"{found['ratio_' + arm + '_dynamic']:.4f}" in printed
    assert found["verdict"].capitalize() in printed
    assert "held-out: 7 videos\n" in printed


def test_more_frames_than_stored_are_refused(project: Project) -> None:
    project(2)
    write_params(num_frames=STORED + 1)
    with pytest.raises(ParamsError, match=r"evaluate.num_frames \(7\) must be <= .* \(6\)"):
        evaluate.main()


def test_clips_whose_footage_was_trained_on_are_left_out(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project(6)
    write_encode_folder(6, seen=2)
    evaluate.main()
    found = metrics()
    assert (found["footage_left_out"], found["clips"]) == (2, 4)
    with paths.BY_CLIP.open(newline="") as file:
        ids = {row["video_id"] for row in csv.DictReader(file)}
    assert ids == {f"val/number {number}.mp4" for number in range(2, 6)}
    verdict.main([])
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 clips left out, as their footage was trained on" in printed
    write_encode_folder(2, seen=2)
    with pytest.raises(FvlmError, match="footage of all 2 held-out clips"):
        evaluate.main()


def test_as_many_clips_as_asked_for_are_evaluated(project: Project) -> None:
    project(7)
    write_params(max_clips=3)
    evaluate.main()
    assert metrics()["clips"] == 3


def test_without_val_clips_the_message_says_so(project: Project) -> None:
    project(0)
    with pytest.raises(ShardError, match="no val shards"):
        evaluate.main()


def test_a_verdict_before_evaluation_names_the_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FvlmError, match=r"data/evaluation.json not found"):
        verdict.main([])
