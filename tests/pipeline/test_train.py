"""The train stage on real shards with a tiny model: under torchrun, and in parts under real DVC."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from transformers import LlamaModel

from fvlm.core.errors import ParamsError
from fvlm.core.io import sample_key
from fvlm.core.params import load_params
from fvlm.core.rows import write_rows
from fvlm.model.saved import load_model
from fvlm.shards.footage import hash_footage
from fvlm.training import stage
from fvlm.training.trainings import run_training
from pipeline import paths, train
from tests import tiny
from tests.tiny import set_params

ROOT = Path(__file__).parents[2]
STORED, TOKENS, LATENT = 6, (10, 16), (4, 4, 4)
CLIPS = 10
CAPTIONS = ("a cat", "", "the dog sees a cat", " ")
PARAMS: dict[str, dict[str, Any]] = {
    "encode": {"dino": "assets/tiny", "vae": "assets/tiny"},  # as the shards' manifest says
    "model": {"llm": "weights/llm", "llm_layers": 0, "query_layers": 0},
    "train": {
        "num_frames": 4,
        "frames": "random",
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_samples": 48,
        "warmup_samples": 8,
        "checkpoint_samples": 16,
    },
}
Run = Callable[..., str]
RESULTS = ("plots/train.csv", "models/foveated/model.safetensors", "models/foveated/config.json")


def write_inputs(folder: Path, *, held_out: int = 0) -> None:
    """Encode shards of random numbers and a language model; parameters are set to fit."""
    set_params(folder, PARAMS)
    LlamaModel(tiny.llama()).save_pretrained(folder / "weights/llm")
    write_shards(folder, held_out=held_out)
    # No tracking here: starting mlflow takes longer than all else.
    (folder / ".state").mkdir()
    (folder / ".state/mlflow").write_text("in the way")


def write_shards(folder: Path, *, held_out: int = 0, clips: int = CLIPS) -> None:
    rng = np.random.default_rng(0)
    samples = [
        (
            sample_key(f"number {number}.mp4"),
            {
                "tokens.npy": rng.standard_normal((STORED, *TOKENS)).astype(np.float16),
                "latents.npy": rng.standard_normal((STORED, *LATENT)).astype(np.float16),
                "json": {
                    "video_id": f"number {number}.mp4",
                    "footage": hash_footage(rng.integers(0, 256, (STORED, 3, 8, 8), np.uint8)),
                },
            },
        )
        for number in range(clips + held_out)
    ]
    shards = {"train-000000.tar": samples[:clips], "val-000000.tar": samples[clips:]}
    manifest = tiny.encoded_manifest((STORED, *TOKENS), (STORED, *LATENT))
    written = {name: found for name, found in shards.items() if found}
    tiny.write_shards(folder / "data/encode", written, manifest)
    tiny.write_shards(folder / "data/decode", {}, tiny.frame_manifest(STORED, 3, 32, 32))
    write_captions(folder, [CAPTIONS[number % 4] for number in range(clips + held_out)])


def write_captions(folder: Path, captions: Sequence[str]) -> None:
    names = [f"number {number}.mp4" for number in range(len(captions))]
    rows = zip(names, captions, strict=True)
    write_rows(
        folder / paths.CAPTIONS,
        ({"key": sample_key(name), "video_id": name, "caption": told} for name, told in rows),
    )


def curves(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "plots/train.csv").read_text().splitlines()
    return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(lines)]


TORCHRUN = "torch.distributed.run --nproc-per-node 2 -m pipeline.train"


def handed_back(seed: int | None = None) -> str:
    """What the stage says of a training that it does not do again."""
    name = "train" if seed is None else f"train seed-{seed}"
    return f"{name}: handed back: trained before with the same code, data and parameters"


def start_module(folder: Path, module: str, **more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *module.split()],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def run_module(folder: Path, module: str, *, code: int = 0) -> str:
    """Run it in a folder; its standard error, once it ended with that exit code."""
    with start_module(folder, module) as process:
        _, said = process.communicate()
    assert process.returncode == code, said
    return said


def enter_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a folder that has all that the stage reads."""
    shutil.copy(ROOT / "params.yaml", folder)
    write_inputs(folder)
    monkeypatch.chdir(folder)


def test_torchrun_trains_as_one_process_does_and_one_writes(tmp_path: Path) -> None:
    """Out of time it ends with 1, and says once and clearly that it is unfinished."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_inputs(tmp_path)
    found = []
    for module in ("pipeline.train", TORCHRUN):
        if module == TORCHRUN:
            set_params(tmp_path, {"train": {"max_hours": 1e-9}})
            said = run_module(tmp_path, module, code=1)
            stop = (
                "unfinished: stopped after step 1 of 6; the state is saved: run again to continue"
            )
            assert said.splitlines().count(stop) == 1
            assert "Traceback" not in said[: said.index(stop)]
            assert re.search(r"exitcode *: 75", said[said.index(stop) :])
            assert not (tmp_path / "models").exists()
            set_params(tmp_path, {"train": {"max_hours": 1.0}})
        assert run_module(tmp_path, module).count("train: 6/6 steps") == 1
        found.append(curves(tmp_path))
        load_model(tmp_path / "models/foveated")
        shutil.rmtree(tmp_path / ".state/train")
        shutil.rmtree(tmp_path / "models")
    for row, same in zip(*found, strict=True):
        assert row == pytest.approx(same, rel=1e-3)


@pytest.mark.slow
def test_torchrun_stopped_by_sigterm_goes_on(tmp_path: Path) -> None:
    """It passes the signal on; its processes stop after the same step, with the state saved."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_inputs(tmp_path)
    set_params(tmp_path, {"train": {"max_samples": 640}})
    with start_module(tmp_path, TORCHRUN) as process:
        while process.poll() is None and not any(tmp_path.glob(".state/train/**/*.safetensors")):
            time.sleep(0.01)
        process.terminate()
        _, said = process.communicate()
    assert process.returncode != 0
    (stopped,) = re.findall(r"unfinished: stopped after step (\d+) of 80; the state is saved", said)
    assert 0 < int(stopped) < 80
    progress = re.findall(r"train: (\d+)/80 steps", run_module(tmp_path, TORCHRUN))
    assert all(int(step) > int(stopped) for step in progress)
    assert progress[-1] == "80"
    assert [row["step"] for row in curves(tmp_path)] == list(range(80))


def test_every_seed_has_a_model_and_one_without_fine_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each equals what its seed gives alone; a seed that is added trains nothing else again."""
    enter_project(tmp_path, monkeypatch)
    set_params(tmp_path, {"train": {"seeds": [4]}})
    train.main()
    alone = (paths.MODEL / "model.safetensors").read_bytes()
    assert "train: 6/6 steps" in capfd.readouterr().err
    set_params(tmp_path, {"train": {"seeds": [2, 4], "coarse_only": True}})
    train.main()
    said, progress = capfd.readouterr()
    assert [line for line in said.splitlines() if "handed back" in line] == [handed_back(4)]
    for name in ("train", "train coarse-only", "train coarse-only seed-4"):
        assert f"{name}: 6/6 steps" in progress
    assert "train seed-4" not in progress
    folders = ["", "coarse-only", "coarse-only/seed-4", "seed-4"]
    assert sorted(path.parent for path in paths.MODEL.rglob("config.json")) == [
        paths.MODEL / name for name in folders
    ]
    weights = [(paths.MODEL / name / "model.safetensors").read_bytes() for name in folders]
    assert len(set(weights)) == 4
    assert weights[-1] == alone
    assert [load_model(paths.MODEL / name).fine_iterations for name in folders] == [1, 0, 0, 1]
    assert (paths.MODEL / "seed-4/train.csv").is_file()
    set_params(tmp_path, {"train": {"seeds": [4], "coarse_only": False}})
    train.main()
    assert list(paths.MODEL.rglob("config.json")) == [paths.MODEL / "config.json"]
    assert (paths.MODEL / "model.safetensors").read_bytes() == alone


def test_models_of_pooled_tokens_are_trained_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the same batches; the model itself is not trained again for them."""
    enter_project(tmp_path, monkeypatch)
    set_params(tmp_path, {"train": {"seeds": [4]}})
    train.main()
    set_params(tmp_path, {"train": {"seeds": [4, 2], "pooled_tokens": [1, 4]}})
    train.main()
    again = "train: handed back: trained before with the same code, data and parameters"
    assert capfd.readouterr().out.splitlines() == [again]
    counts = {"": 0, "seed-2": 0, "pooled/1": 1, "pooled/1/seed-2": 1, "pooled/4": 4}
    counts["pooled/4/seed-2"] = 4
    assert {path.parent for path in paths.MODEL.rglob("config.json")} == {
        paths.MODEL / name for name in counts
    }
    models = [load_model(paths.MODEL / name) for name in counts]
    assert [model.config.pooled_tokens for model in models] == list(counts.values())
    assert [model.fine_iterations for model in models] == [1, 1, 0, 0, 0, 0]
    assert [model.attention.tokens_per_frame for model in models] == [1, 1, 1, 1, 4, 4]
    names = {(paths.MODEL / name / "model.safetensors").read_bytes() for name in counts}
    assert len(names) == len(counts)
    set_params(tmp_path, {"train": {"pooled_tokens": [49]}})
    with pytest.raises(ParamsError, match=r"train.pooled_tokens: 49 is a grid of 7 x 7"):
        train.main()


def test_max_hours_are_those_of_all_trainings_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    enter_project(tmp_path, monkeypatch)
    set_params(tmp_path, {"train": {"seeds": [2, 4], "max_hours": 1.0}})
    clock = time.monotonic

    def run_for_an_hour(*arguments: Any, **options: Any) -> Any:
        trained = run_training(*arguments, **options)
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)
        return trained

    monkeypatch.setattr(stage, "run_training", run_for_an_hour)
    with pytest.raises(SystemExit, match="75"):
        train.main()
    said = capfd.readouterr().err
    assert "train: 6/6 steps" in said
    assert "unfinished: stopped after step 1 of 6" in said


def test_held_out_clips_are_shown_on_the_way_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Others train nothing again; the curve is only ever of those that are held out now."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_inputs(tmp_path, held_out=3)
    monkeypatch.chdir(tmp_path)
    set_params(tmp_path, {"train": {"max_samples": 200}})
    train.main()
    results = [Path(path).read_bytes() for path in RESULTS[:2]]
    table = paths.VALIDATION.read_text()
    rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(table.splitlines())]
    assert [row["samples"] for row in rows] == [32, 64, 96, 128, 160, 200]
    assert list(rows[0]) == list(stage.VALIDATION_COLUMNS)
    for row in rows:
        assert row["coarse_fine_ratio"] == row["loss_coarse"] / row["loss_fine"]
    assert len({row["loss_fine"] for row in rows}) == len(rows)
    capfd.readouterr()

    set_params(tmp_path, {"train": {"validate_samples": 2}})  # of three there was room for two
    train.main()
    said = capfd.readouterr().out
    assert handed_back() in said
    assert "no curve" not in said
    assert paths.VALIDATION.read_text() == table
    for change in ("other clips", "none"):
        if change == "none":
            set_params(tmp_path, {"train": {"validate_samples": 0}})
        else:
            shutil.rmtree(tmp_path / "data/encode")
            write_shards(tmp_path, held_out=1)
        train.main()
        said = capfd.readouterr().out
        assert handed_back() in said
        assert ("no curve of held-out clips: others were" in said) is (change == "other clips")
        assert paths.VALIDATION.read_text() == table.splitlines()[0] + "\n"
        assert [Path(path).read_bytes() for path in RESULTS[:2]] == results


def test_the_metrics_tell_of_captions_in_both_passes() -> None:
    params = load_params(train.Sections, ROOT / "params.yaml").train
    names = ("coarse", "fine", "caption_coarse", "caption_fine")
    row = {f"loss_{name}": float(number) for number, name in enumerate(names, start=1)}
    rows = [{"step": 0.0, "loss": 9.0, **row}] * 10
    found = stage.summarize(rows, params)
    assert {name: found[name] for name in row} == row
    assert "loss" not in found
    assert not [name for name in found if "ratio" in name]  # none without an interval


@pytest.mark.slow
def test_parts_under_dvc_equal_one_run_and_experiments_keep_to_themselves(
    workspace: Path, run: Run
) -> None:
    """Each state belongs to its parameters: an experiment goes on with its own or starts anew."""
    write_inputs(workspace)
    (workspace / "data/decode").mkdir()  # which the stage depends on, and reads for frames only
    stages = YAML().load((workspace / "dvc.yaml").read_text())["stages"]
    YAML().dump({"stages": {"train": stages["train"]}}, workspace / "dvc.yaml")
    repro, other = ("dvc", "repro"), ("dvc", "exp", "run", "-S", "train.lr=0.01")
    run(*repro)
    expected = [(workspace / path).read_bytes() for path in RESULTS]
    run("git", "add", ".")
    run("git", "commit", "-q", "-m", "result")
    run("python", "-m", "fvlm", "forget", "train")
    hours, fast = {"train": {"max_hours": 1e-9}}, {"train": {"max_hours": 1.0, "lr": 1e-3}}
    for step in (1, 2):
        set_params(workspace, hours)
        assert f"unfinished: stopped after step {step} of 6" in run(*repro, code=255)
        assert "train" in json.loads(run("dvc", "status", "--json"))
        assert f"unfinished: stopped after step {step} of 6" in run(*other, code=255)
        set_params(workspace, fast)
    set_params(workspace, hours)
    assert "unfinished: stopped after step 3 of 6" in run(*repro, code=255)
    # Never recorded as done: neither from the lock file nor from the run cache.
    set_params(workspace, {"train": {"max_hours": 2.0}})
    assert "Running stage 'train'" in run(*repro)
    assert [(workspace / path).read_bytes() for path in RESULTS] == expected
    set_params(workspace, hours)
    assert "unfinished: stopped after step 3 of 6" in run(*other, code=255)
