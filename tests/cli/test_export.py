"""An exported folder loads, and its card never shows a ratio without interval and controls."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from fvlm.cli import export
from fvlm.core.document import read_document
from fvlm.core.errors import CheckpointError, FvlmError, ParamsError
from fvlm.core.io import write_json
from fvlm.model.build import build_model
from fvlm.model.saved import load_model
from fvlm.statistics.arms import ARMS, CONTROLS
from fvlm.statistics.evaluation import Evaluation
from fvlm.statistics.verdict import describe
from pipeline import paths
from pipeline.evaluate import weights_of
from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A project with a trained model and its metrics; returns the evaluation."""
    monkeypatch.chdir(tmp_path)
    LlamaForCausalLM(tiny.llama(hidden_size=8)).save_pretrained("llm")
    params = tiny.model_params("llm", head_channels=4)
    model, architecture = build_model(params, tiny.encoded_manifest((4, 10, 6), (4, 4, 2, 2)))
    tiny.save_model(model, architecture, paths.MODEL)
    write_json(paths.TRAIN_METRICS, {"steps": 7, "samples": 56})
    found = json.loads((ROOT / "tests/report/evaluate.json").read_text())
    evaluation = {name: 1.25 if value is None else value for name, value in found.items()}
    evaluation["weights"] = weights_of(paths.MODEL)
    write_json(paths.EVALUATION, evaluation)
    return evaluation


@pytest.mark.usefixtures("project")
def test_the_folder_loads_and_holds_nothing_else() -> None:
    export.main(["out"])
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    found, expected = load_model("out").state_dict(), load_model(paths.MODEL).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_card_shows_ratios_with_intervals_and_controls(project: dict[str, Any]) -> None:
    export.main(["out"])
    card = Path("out/README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "fvlm"
    assert describe(read_document(Evaluation, paths.EVALUATION).held_out) in card
    for name in ("coarse_fine_ratio_dynamic", *(f"{arm}_fine_ratio_dynamic" for arm in CONTROLS)):
        low, high = project[f"{name}_low"], project[f"{name}_high"]
        assert f"| {project[name]:.4f} | {low:.4f} to {high:.4f} | {project['videos']} |" in card
    for arm, meaning in ARMS.items():
        assert f"| {meaning} | {project['loss_' + arm]:.5f}" in card
    weights = json.loads(Path("out/config.json").read_text())["weights_sha256"]
    for fact in (weights, "assets/tiny", "7 steps, 56 clips", '"query_layers": 0', "torch 2"):
        assert fact in card


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
