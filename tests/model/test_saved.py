"""What a saved model refuses: damage, other formats, and code to which it means something else."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fvlm.core.errors import CheckpointError, FvlmError
from fvlm.core.io import read_json, sha256_file, write_json
from fvlm.model.build import FORMAT, model_of
from fvlm.model.foveated import FoveatedModel
from fvlm.model.hub import CONFIG, WEIGHTS
from fvlm.model.saved import load_model
from tests import tiny

MANIFEST = tiny.encoded_manifest((4, 10, 16), (4, 4, 5, 5))
Save = Callable[..., FoveatedModel]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """save(**params) makes a model with random weights, and saves it in the test's folder."""

    def make(**params: Any) -> FoveatedModel:
        architecture = tiny.architecture(**params)
        model = model_of(architecture, FoveatedModel).eval()
        for parameter in model.head.parameters():  # zero at the start, and it multiplies
            torch.nn.init.normal_(parameter)
        tiny.save_model(model, architecture, tmp_path)
        return model

    return make


def change_config(folder: Path, **changes: Any) -> None:
    write_json(folder / CONFIG, read_json(folder / CONFIG) | changes)


def change_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Other weights than those that gave the outputs in the config, which names their hash."""
    save_file(weights, folder / WEIGHTS)
    change_config(folder, weights_sha256=sha256_file(folder / WEIGHTS))


KINDS: list[dict[str, Any]] = [
    {},
    {"query_layers": 1, "text": "caption"},
    {"query_layers": 1, "text": "condition", "input": "frames"},
    {"text": "answer"},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_other_code_that_makes_the_same_loads_it(
    save: Save, tmp_path: Path, kind: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(**kind)
    load_model(tmp_path)
    assert capsys.readouterr().err == ""
    change_config(tmp_path, made_by="other")
    loaded = load_model(tmp_path).state_dict()
    assert "trained by other code, which makes the same of a fixed batch" in capsys.readouterr().err
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_weight_that_differs_is_noticed_by_the_outputs(
    save: Save, tmp_path: Path, kind: dict[str, Any]
) -> None:
    save(**kind)
    change_config(tmp_path, made_by="other")
    whole = load_file(tmp_path / WEIGHTS)
    matter = [name for name in whole if name.startswith("head.") and name.endswith("weight")]
    for name in [*matter, "language.layers.0.mlp.down_proj.weight"]:
        change_weights(tmp_path, whole | {name: whole[name] * 1.1})
        with pytest.raises(CheckpointError, match=r"mean something else .*dvc repro -f -s train`"):
            load_model(tmp_path)
    change_weights(tmp_path, whole)
    load_model(tmp_path)


def test_code_that_computes_something_else_refuses_it(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save()
    change_config(tmp_path, made_by="other")
    load_model(tmp_path)
    other = SimpleNamespace(**{**vars(torch.nn), "GELU": torch.nn.ReLU})
    monkeypatch.setattr("fvlm.model.film_head.nn", other)
    with pytest.raises(CheckpointError, match=r"the coarse pass of a fixed batch differs.*go back"):
        load_model(tmp_path)


def test_rounding_is_no_difference_and_no_number_is_one(save: Save, tmp_path: Path) -> None:
    save()
    outputs = read_json(tmp_path / CONFIG)["outputs"]
    near = {name: [value * (1 + 1e-5) for value in values] for name, values in outputs.items()}
    change_config(tmp_path, made_by="other", outputs=near)
    load_model(tmp_path)
    for wrong in ({"coarse": outputs["coarse"][:-1]}, outputs | {"caption_fine": [1.0]}):
        change_config(tmp_path, outputs=wrong)
        with pytest.raises(CheckpointError, match="pass of a fixed batch differs"):
            load_model(tmp_path)
    change_config(tmp_path, outputs=outputs)
    weights = load_file(tmp_path / WEIGHTS)
    change_weights(
        tmp_path, weights | {"head.film.0.bias": weights["head.film.0.bias"] * torch.nan}
    )
    with pytest.raises(CheckpointError, match="pass of a fixed batch differs"):
        load_model(tmp_path)


def test_damaged_weights_are_refused(save: Save, tmp_path: Path) -> None:
    save()
    path = tmp_path / WEIGHTS
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 1
    for damaged in (sound[:-1], sound[: len(sound) // 2], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load_model(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(tmp_path)
    path.write_bytes(sound)
    load_model(tmp_path)


def test_weights_of_another_model_are_refused(save: Save, tmp_path: Path) -> None:
    save(blocks=2)
    other = (tmp_path / WEIGHTS).read_bytes()
    save()
    (tmp_path / WEIGHTS).write_bytes(other)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(tmp_path)
    change_config(tmp_path, weights_sha256=sha256_file(tmp_path / WEIGHTS))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot load the weights"):
        load_model(tmp_path)


def test_another_format_and_a_missing_folder_are_refused(save: Save, tmp_path: Path) -> None:
    with pytest.raises(FvlmError, match=r"nowhere: no such folder .*dvc repro"):
        load_model(tmp_path / "nowhere")
    save(query_layers=1)
    saved = read_json(tmp_path / CONFIG)
    # eos and chat are of a tokenizer, pooled_tokens of a baseline.
    for missing in saved.keys() - {"format", "eos", "chat", "pooled_tokens"}:
        write_json(tmp_path / CONFIG, {k: v for k, v in saved.items() if k != missing})
        with pytest.raises(CheckpointError, match=rf"config\.json is invalid: {missing}: .*requ"):
            load_model(tmp_path)
    write_json(tmp_path / CONFIG, saved | {"model": {"llm": "x", "lm_layers": 1}})
    with pytest.raises(CheckpointError, match=r"model.llm_layers: .*; model.lm_layers: "):
        load_model(tmp_path)
    for other in (99, None):
        write_json(tmp_path / CONFIG, saved | {"format": other})
        with pytest.raises(CheckpointError, match=rf"format {other}, expected {FORMAT}; run `dvc"):
            load_model(tmp_path)
    write_json(tmp_path / CONFIG, {})
    with pytest.raises(CheckpointError, match="format None"):
        load_model(tmp_path)
