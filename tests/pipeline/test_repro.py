"""The whole pipeline as a user runs it: real DVC in a git clone, real videos, tiny real models.

One workspace serves the tests of this file, in their order: each builds on the state that the one
before left, as a user's commands do.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from ruamel.yaml import YAML
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaModel

from fvlm.models.build import load_model

ROOT = Path(__file__).parents[2]
Run = Callable[..., str]

# name of the file, codec, seconds; 8 frames/s
VIDEOS = [
    ("street.mp4", "libx264", 5.0),
    ("sub folder/park ä.mkv", "libx264", 4.0),
    ("harbour.webm", "libvpx-vp9", 4.0),
    ("market.avi", "mpeg4", 4.5),
    ("bridge.mp4", "mpeg4", 4.0),
    ("station.mp4", "libx264", 4.25),
    ("long.mp4", "mpeg4", 12.0),
    ("short.mp4", "mpeg4", 1.0),
]
TINY: dict[str, dict[str, Any]] = {
    "collect": {"source": "videos"},
    "filter": {"min_seconds": 3.0, "max_seconds": 10.0},
    "decode": {"num_frames": 6, "size": 32, "clips_per_shard": 2, "max_failed_fraction": 0.2},
    "encode": {"dino": "weights/dino", "vae": "weights/vae", "layer": 2, "batch_frames": 12},
    "model": {"llm": "weights/llm", "llm_layers": 0, "query_layers": 1},
    "train": {
        "num_frames": 4,
        "batch_size": 4,
        "max_samples": 64,
        "warmup_samples": 4,
        "checkpoint_samples": 16,
    },
    "evaluate": {"num_frames": 5, "bootstrap_samples": 200},
}


def render(path: Path, codec: str, seconds: float, *, seed: int) -> None:
    """A moving bright square on noise, 64x48, 8 frames/s."""
    generator = np.random.default_rng(seed)
    background = generator.integers(0, 120, (48, 64, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(round(seconds * 8)):
            picture = background.copy()
            left = (number * 3 + seed * 7) % 48
            picture[16:32, left : left + 16] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def damage(path: Path) -> None:
    """Overwrite the last pictures; the first one and the index stay as they are."""
    content = bytearray(path.read_bytes())
    end = content.index(b"moov") - 4
    content[end - 500 : end] = np.random.default_rng(0).bytes(500)
    path.write_bytes(content)


def save_tiny_models(folder: Path) -> None:
    """Random models of the real classes in the formats of their hubs."""
    torch.manual_seed(0)
    dino = Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    Dinov2Model(dino).save_pretrained(folder / "dino")
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")
    llm = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=32,
        max_position_embeddings=64,
    )
    LlamaModel(llm).save_pretrained(folder / "llm")


def set_params(path: Path, values: dict[str, dict[str, Any]]) -> None:
    yaml = YAML()
    document = yaml.load(path.read_text())
    for section, entries in values.items():
        document[section].update(entries)
    yaml.dump(document, path)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git clone of the tracked files, with tiny parameters, videos and models, committed."""
    clone = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    keep = (
        "fvlm/",
        "pipeline/",
        "presets/",
        "assets/",
        ".dvc/config",
        ".dvc/.gitignore",
        ".dvcignore",
        ".gitignore",
        "params.yaml",
        "dvc.yaml",
        "pyproject.toml",
        "data/.gitignore",
        "models/.gitignore",
    )
    for name in filter(None, listed.split("\0")):
        if name.startswith(keep) and (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    set_params(clone / "params.yaml", TINY)
    save_tiny_models(clone / "weights")
    for seed, (name, codec, seconds) in enumerate(VIDEOS):
        render(clone / "videos" / name, codec, seconds, seed=seed)
    (clone / "videos" / "broken.mp4").write_bytes(b"not a video at all" * 100)
    render(clone / "videos" / "damaged.mp4", "libx264", 4.0, seed=50)
    damage(clone / "videos" / "damaged.mp4")
    (clone / "videos" / "street.txt").write_text("A bright square moves over noise.")
    with (clone / ".gitignore").open("a") as file:
        file.write("/videos/\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "start"]):
        subprocess.run(["git", *command], cwd=clone, check=True, env=environment())
    return clone


def environment() -> dict[str, str]:
    names = {
        f"GIT_{who}_{what}": "test@example.org" if what == "EMAIL" else "test"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | names | {"PATH": path, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def run(workspace: Path) -> Run:
    """Run a command in the workspace; returns what it printed, fails when its exit code differs."""

    def call(*command: str, code: int = 0) -> str:
        done = subprocess.run(
            command,
            cwd=workspace,
            env=environment(),
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=600,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    return call


@pytest.fixture
def restored(run: Run) -> Iterator[None]:
    """Afterwards the workspace is as committed."""
    yield
    run("git", "checkout", "-q", ".")
    run("dvc", "checkout", "-q")


def commit(run: Run, message: str) -> None:
    run("git", "add", ".")
    run("git", "commit", "-q", "-m", message)


def ran(output: str) -> list[str]:
    """The stages that a `dvc repro` executed."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def metrics(workspace: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace / f"metrics/{stage}.json").read_text())
    return found


def test_repro_runs_six_stages_and_accounts_for_every_video(workspace: Path, run: Run) -> None:
    output = run("dvc", "repro")
    assert ran(output) == ["collect", "filter", "decode", "encode", "train", "evaluate"]
    filtered = metrics(workspace, "filter")
    assert filtered["inputs"] == len(VIDEOS) + 2
    assert (filtered["accepted"], filtered["filtered"], filtered["quarantined"]) == (7, 2, 1)
    assert (filtered["reason_too_short"], filtered["reason_too_long"]) == (1, 1)
    decoded = metrics(workspace, "decode")
    assert (decoded["inputs"], decoded["decoded"], decoded["quarantined"]) == (7, 6, 1)
    (note,) = json.loads((workspace / "data/decode/manifest.json").read_text())["quarantined"]
    assert note["video_id"] == "damaged.mp4"
    assert note["reason"]
    assert metrics(workspace, "encode")["encoded"] == 6
    assert metrics(workspace, "train")["steps"] == 16
    evaluated = metrics(workspace, "evaluate")
    assert evaluated["coarse_fine_ratio"] == pytest.approx(
        evaluated["loss_coarse"] / evaluated["loss_fine"]
    )
    commit(run, "result")


def test_trained_model_loads_with_one_call(workspace: Path) -> None:
    model = load_model(workspace / "models/foveated")
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) > 1_000_000


def test_verdict_is_printed_with_controls_and_interval(run: Run) -> None:
    output = run("python", "-m", "pipeline.verdict")
    arms = ("coarse pass", "fine pass", "random queries", "previous latent")
    for word in (*arms, "held-out videos", "interval"):
        assert word in output


def test_nothing_changed_runs_only_collect(workspace: Path, run: Run) -> None:
    before = (workspace / "dvc.lock").read_bytes()
    assert ran(run("dvc", "repro")) == ["collect"]
    assert (workspace / "dvc.lock").read_bytes() == before


@pytest.mark.usefixtures("restored")
def test_experiment_with_another_batch_size_costs_the_same_samples(
    workspace: Path, run: Run
) -> None:
    """A batch larger than the corpus spans epochs; the budget counts clips, not steps."""
    output = run("dvc", "exp", "run", "-S", "train.batch_size=64", "--name", "large-batch")
    assert ran(output) == ["collect", "train", "evaluate"]
    assert metrics(workspace, "train")["steps"] == 1
    assert metrics(workspace, "train")["samples"] == 64
    difference = run("dvc", "metrics", "diff")
    assert "coarse_fine_ratio" in difference
    assert "large-batch" in run("dvc", "exp", "show")
    run("dvc", "plots", "diff", "HEAD", "workspace")


def test_going_back_restores_from_the_cache(workspace: Path, run: Run) -> None:
    output = run("dvc", "repro")
    assert ran(output) == ["collect"]
    assert metrics(workspace, "train")["steps"] == 16


@pytest.mark.usefixtures("restored")
def test_training_parameters_rerun_training_and_evaluation_only(run: Run) -> None:
    run("dvc", "exp", "run", "-S", "train.lr=0.001")
    assert ran(run("dvc", "repro")) == ["collect"]
    stages = json.loads(run("dvc", "status", "--json"))
    assert set(stages) <= {"collect"}


def test_computing_all_shards_again_gives_identical_bytes(workspace: Path, run: Run) -> None:
    def shards() -> dict[str, bytes]:
        return {
            f"{stage}/{path.name}": path.read_bytes()
            for stage in ("decode", "encode")
            for path in (workspace / "data" / stage).iterdir()
        }

    before = shards()
    shutil.rmtree(workspace / ".state/shards")
    run("python", "-m", "pipeline.decode")
    run("python", "-m", "pipeline.encode")
    assert metrics(workspace, "decode")["reused"] == metrics(workspace, "encode")["reused"] == 0
    assert shards() == before
    run("git", "checkout", "-q", ".")


@pytest.mark.usefixtures("restored")
def test_too_many_undecodable_videos_stop_the_stage_with_their_list(
    workspace: Path, run: Run
) -> None:
    set_params(workspace / "params.yaml", {"decode": {"max_failed_fraction": 0.1}})
    output = run("dvc", "repro", "decode", code=255)
    assert "1 of 7 videos cannot be decoded, more than decode.max_failed_fraction (0.1)" in output
    assert "damaged.mp4: " in output


@pytest.mark.usefixtures("restored")
def test_filter_edit_leaves_shards_of_other_clips_alone(workspace: Path, run: Run) -> None:
    set_params(workspace / "params.yaml", {"filter": {"max_seconds": 4.75}})
    output = run("dvc", "repro", "encode")
    assert ran(output) == ["collect", "filter", "decode", "encode"]
    assert metrics(workspace, "filter")["accepted"] == 6
    assert metrics(workspace, "decode")["reused"] > 0
    assert metrics(workspace, "encode")["reused"] > 0


@pytest.mark.usefixtures("restored")
def test_video_added_to_the_folder_is_picked_up(workspace: Path, run: Run) -> None:
    render(workspace / "videos" / "new.mp4", "libx264", 4.0, seed=99)
    output = run("dvc", "repro", "encode")
    assert ran(output) == ["collect", "filter", "decode", "encode"]
    assert metrics(workspace, "encode")["inputs"] == 7  # the new one, without the damaged one
    (workspace / "videos" / "new.mp4").unlink()


@pytest.mark.usefixtures("restored")
def test_invalid_parameters_are_all_named(workspace: Path, run: Run) -> None:
    set_params(
        workspace / "params.yaml",
        {"train": {"batch_size": 64.5, "warmup_samples": 5000, "lr_max": 0.1}},
    )
    output = run("dvc", "repro", code=255)
    assert "train.batch_size: expected int, got 64.5" in output
    assert "train.lr_max: unknown key; did you mean `lr`?" in output


@pytest.mark.usefixtures("restored")
def test_layer_that_does_not_fit_is_refused(workspace: Path, run: Run) -> None:
    set_params(workspace / "params.yaml", {"model": {"query_layers": 2}})
    output = run("dvc", "repro", code=255)
    assert "encode.layer (2) and model.query_layers (2) do not fit" in output


@pytest.mark.usefixtures("restored")
def test_empty_folder_is_a_clear_error(workspace: Path, run: Run) -> None:
    (workspace / "nothing").mkdir()
    set_params(workspace / "params.yaml", {"collect": {"source": "nothing"}})
    output = run("dvc", "repro", code=255)
    assert "collect.source" in output
    assert "nothing" in output


@pytest.mark.usefixtures("restored")
def test_stopped_training_stays_unfinished_and_continues(workspace: Path, run: Run) -> None:
    """Out of time: exit code 75, no result; the chunks together equal one run."""
    expected = (workspace / "plots/train.csv").read_bytes()
    weights = (workspace / "models/foveated/model.safetensors").read_bytes()
    shutil.rmtree(workspace / ".state/train")
    set_params(workspace / "params.yaml", {"train": {"max_hours": 1e-9}})
    for step in (1, 2):
        output = run("dvc", "repro", "train", code=255)
        assert f"unfinished: stopped after step {step} of 16" in output
        assert "run `dvc repro` again to continue" in output
    set_params(workspace / "params.yaml", {"train": {"max_hours": 23.0}})
    assert ran(run("dvc", "repro", "train")) == ["collect", "train"]
    assert (workspace / "plots/train.csv").read_bytes() == expected
    assert (workspace / "models/foveated/model.safetensors").read_bytes() == weights
