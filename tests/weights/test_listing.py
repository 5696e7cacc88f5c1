"""What pretrained parts hold is told by content: later stages run again when that changes."""

from pathlib import Path
from typing import Any

import pytest

from fvlm.weights.listing import KEYS, list_weights


def test_a_start_is_told_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params: dict[str, Any] = {"encode": {"dino": "a", "vae": "a"}, "model": {"llm": "a"}}
    params |= {"uncertainty": {"towers": {"b": {"model": "a"}}}, "train": {"start": ""}}
    (tmp_path / "a").mkdir()
    found = list_weights(params, made=Path("models/foveated"))
    assert found.keys() == KEYS.keys() | {"towers"}
    assert found["towers"] == {"b": found["dino"]}
    assert found["start"] == {"source": ""}
    params["train"]["start"] = "a"
    seen = [list_weights(params, made=Path("models/foveated"))["start"]]
    for content in ("one", "two"):
        (tmp_path / "a/model.safetensors").write_text(content)
        seen.append(list_weights(params, made=Path("models/foveated"))["start"])
    assert len({str(said) for said in seen}) == 3
