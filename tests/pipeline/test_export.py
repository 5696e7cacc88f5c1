"""An exported folder loads, and its card never shows a ratio without interval and controls."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from fvlm.errors import CheckpointError, ParamsError
from fvlm.evaluation.arms import ARMS, CONTROLS
from fvlm.io import write_json
from fvlm.models.build import build_model, load_model, save_model
from fvlm.models.foveated import ModelParams
from pipeline import export

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A project with a trained model and its metrics; returns the evaluation."""
    monkeypatch.chdir(tmp_path)
    sizes: dict[str, Any] = {"vocab_size": 4, "hidden_size": 8, "intermediate_size": 8}
    language = LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(language).save_pretrained("llm")
    params = ModelParams(
        llm="llm",
        llm_layers=0,
        query_layers=0,
        intermediate_tokens=False,
        query_role="token",
        temperature=1.0,
        fine_iterations=1,
        head_channels=4,
        text="none",
        max_text_tokens=8,
    )
    source = {"source": "parts/x", "revision": "abc", "sha256": "0" * 64}
    manifest = {
        "tokens": {"shape": [4, 10, 6]},
        "latents": {"shape": [4, 4, 2, 2]},
        "dino": source | {"blocks": 2, "layer": 2},
        "vae": source,
    }
    model, config = build_model(params, manifest)
    save_model(model.state_dict(), config, export.MODEL)
    write_json(export.TRAIN, {"steps": 7, "samples": 56})
    seen = {f"train_coarse_fine_ratio_dynamic{end}": 1.25 for end in ("", "_low", "_high")}
    evaluation: dict[str, Any] = seen | {"train_videos": 3}
    evaluation |= json.loads((ROOT / "metrics/evaluate.json").read_text())
    write_json(export.EVALUATE, evaluation)
    return evaluation


@pytest.fixture
def run_export(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["export", *arguments])
        export.main()

    return run


@pytest.mark.usefixtures("project")
def test_the_folder_loads_and_holds_nothing_else(run_export: Callable[..., None]) -> None:
    run_export("out")
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    found, expected = load_model("out").state_dict(), load_model(export.MODEL).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_card_shows_ratios_with_intervals_and_controls(
    project: dict[str, Any], run_export: Callable[..., None]
) -> None:
    run_export("out")
    card = Path("out/README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "fvlm"
    assert project["statement"] in card
    for name in ("coarse_fine_ratio_dynamic", *(f"{arm}_fine_ratio_dynamic" for arm in CONTROLS)):
        low, high = project[f"{name}_low"], project[f"{name}_high"]
        assert f"| {project[name]:.4f} | {low:.4f} to {high:.4f} | {project['videos']} |" in card
    for arm, meaning in ARMS.items():
        assert f"| {meaning} | {project['loss_' + arm]:.5f}" in card
    weights = json.loads(Path("out/config.json").read_text())["weights_sha256"]
    for fact in (weights, "parts/x", "7 steps, 56 clips", '"query_layers": 0', "torch 2"):
        assert fact in card


@pytest.mark.usefixtures("project")
def test_what_cannot_be_exported(run_export: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="usage"):
        run_export()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ParamsError, match="full is there already"):
        run_export("full")
    weights = export.MODEL / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        run_export("out")
    assert not Path("out").exists()
