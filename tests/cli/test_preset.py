"""Presets decide the whole experiment whatever was there before, and leave all else alone."""

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from fvlm.cli import preset
from fvlm.cli.rules import Sections
from fvlm.core.errors import ParamsError
from fvlm.core.params import load_params, overlay_params, read_yaml

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
NAMES = [path.stem for path in PRESETS]
UNCERTAINTY = ("uncertainty",)
DECIDED = (
    *("collect", "filter", "decode", "encode", "model", "train", "evaluate"),
    *("instruct", "prefer", "quiz"),
)
ANSWERS: dict[str, Any] = {
    "instruct.lr": 3e-5,
    "instruct.max_samples": 1_000_000,
    "prefer.beta": 0.1,
    "prefer.lr": 1e-6,
    "prefer.max_samples": 83_000,
}
# What their source documents fix, and what follows from it for the keys of today.
PUBLISHED: dict[str, dict[str, Any]] = {
    "features-rtx4090": {
        "filter.min_seconds": 20.0,
        "filter.max_seconds": 60.0,
        "decode.num_frames": 24,
        "decode.frame_size": 256,
        "model.query_layers": 0,  # shallow attention only
        "model.temperature": 1.0,
        "model.fine_iterations": 2,
        "model.llm_layers": 0,
        "model.head_channels": 256,
        "model.text": "none",
        "train.input": "features",
        "train.encoder_lr": 0.0,
        "train.batch_size": 64,
        "train.gradient_accumulation_steps": 1,
        "train.num_frames": 16,
        "train.lr": 1e-4,
        "train.max_hours": 2.0,
        "train.token_noise": 0.0,
        **ANSWERS,
    },
    "frames-phase1": {
        "decode.num_frames": 8,
        "decode.frame_size": 256,
        "model.query_layers": 0,
        "model.temperature": 1.0,
        "model.fine_iterations": 1,
        "model.llm_layers": 0,
        "model.head_channels": 256,
        "model.text": "none",
        "train.input": "frames",
        "train.num_frames": 8,
        "train.batch_size": 10,
        "train.gradient_accumulation_steps": 2,
        "train.lr": 1e-4,
        "train.encoder_lr": 1e-4,
        "train.max_grad_norm": 1.0,
        "train.lambda_coarse": 1.0,
        "train.dtype": "bfloat16",
        **ANSWERS,
    },
}


def sections_of(preset: str) -> tuple[str, ...]:
    """What a preset decides: all up to the verdict, or the uncertainty of frame embeddings."""
    return UNCERTAINTY if preset.startswith("uncertainty") else DECIDED


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    return path


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_every_preset_decides_every_key_but_the_source(path: Path) -> None:
    shipped, sections = read_yaml(ROOT / "params.yaml"), sections_of(path.stem)
    expected = {section: set(shipped[section]) for section in sections}
    if sections == UNCERTAINTY:
        assert {section: set(values) for section, values in read_yaml(path).items()} == expected
        return
    expected["collect"] -= {
        "source",
        "path_column",
        "caption_column",
        "group",
        "questions",
    }  # these are about the user's videos
    assert {section: set(values) for section, values in read_yaml(path).items()} == expected


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_every_preset_applies_and_keeps_comments(path: Path, params: Path) -> None:
    before = params.read_text()
    assert overlay_params(Sections, path, params)
    after = params.read_text()
    assert after != before
    said = [[line.split("#")[1:] for line in text.splitlines() if "#" in line]
            for text in (before, after)]  # fmt: skip
    assert said[0] == said[1]
    assert overlay_params(Sections, path, params) == []  # nothing is left to change


PAIRS = [pair for pair in permutations(NAMES, 2) if sections_of(pair[0]) == sections_of(pair[1])]


@pytest.mark.parametrize(("first", "last"), PAIRS)
def test_what_was_applied_before_leaves_nothing(first: str, last: str, params: Path) -> None:
    """Also not what the user had edited; the user's source and the other sections stay."""
    shipped = read_yaml(params)
    overlay_params(Sections, ROOT / f"presets/{last}.yaml", params)
    expected = read_yaml(params)
    edits: dict[str, dict[str, Any]] = {
        "collect": {"source": "my/videos", "control_clips": 7},
        "filter": {"max_seconds": 99.0},
        "model": {"head_channels": 8, "temperature": 3.0, "max_text_tokens": 5},
        "train": {"seeds": [4, 5, 6], "coarse_only": True, "weight_decay": 0.5},
        "evaluate": {"bootstrap_samples": 100},
        "report": {"clips": 9},
        "uncertainty": {"passes": 99},
        "instruct": {"seeds": [7], "question_after": True, "lr": 0.5},
        "prefer": {"beta": 2.0},
        "quiz": {"max_questions": 3},
    }
    decided = sections_of(last)
    overlay_params(Sections, ROOT / f"presets/{first}.yaml", params)
    edited = params.with_name("edits.yaml")
    edited.write_text(str(edits))  # a literal of Python's is YAML here
    overlay_params(Sections, edited, params)
    overlay_params(Sections, ROOT / f"presets/{last}.yaml", params)
    found = read_yaml(params)
    for section, values in shipped.items():
        stays = {} if section in decided else edits.get(section, {})
        if section == "collect":
            stays = stays | {"source": "my/videos"}
        wanted = expected[section] if section in decided else values
        assert found[section] == wanted | stays, section


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_hold_what_was_published(name: str, params: Path) -> None:
    overlay_params(Sections, ROOT / f"presets/{name}.yaml", params)
    found = read_yaml(params)
    for key, value in PUBLISHED[name].items():
        section, _, last = key.partition(".")
        assert found[section][last] == value, key
    train = load_params(Sections, params).train
    assert (train.steps, train.warmup_steps) == (50_000, 1_000)
    assert train.samples_per_step == {"features-rtx4090": 64, "frames-phase1": 20}[name]
    # The final tokens of a ViT-S; with frames, too: the same shards serve training on features.
    assert found["encode"]["layer"] + found["model"]["query_layers"] == 12


def test_an_empty_preset_changes_no_byte(params: Path, tmp_path: Path) -> None:
    before = params.read_bytes()
    (tmp_path / "empty.yaml").write_text("train: {}\n")
    overlay_params(Sections, tmp_path / "empty.yaml", params)
    assert params.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {batch_sise: 64}", "train.batch_sise: unknown key; did you mean `batch_size`?"),
        ("trian: {batch_size: 64}", "trian: .* has no such section"),
        ("train: 64", "train: expected key: value pairs"),
    ],
)
def test_an_invalid_preset_changes_nothing(
    text: str, message: str, params: Path, tmp_path: Path
) -> None:
    before = params.read_bytes()
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message):
        overlay_params(Sections, tmp_path / "bad.yaml", params)
    assert params.read_bytes() == before


@pytest.mark.parametrize("arguments", [[], ["features"], ["frames-phase1", "features-rtx4090"]])
def test_a_command_line_without_one_known_name_lists_the_presets(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="2"):
        preset.main(arguments)
    assert "features-rtx4090" in capsys.readouterr().err


def test_a_named_preset_is_applied_and_says_what_it_replaced(
    params: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(params.parent)
    Path("presets").symlink_to(ROOT / "presets")
    before = read_yaml(params)
    preset.main(["features-rtx4090"])
    after = read_yaml(params)
    assert after["train"]["batch_size"] == 64
    *changes, summary, source = capsys.readouterr().out.splitlines()
    assert changes == [
        f"{section}.{key}: {before[section][key]} -> {value}"
        for section, values in read_yaml(Path("presets/features-rtx4090.yaml")).items()
        for key, value in values.items()
        if value != before[section][key]
    ]
    assert "train.batch_size: 8 -> 64" in changes
    assert (
        summary == f"params.yaml now holds preset features-rtx4090: {len(changes)} values changed"
    )
    assert source.startswith("collect.source stays demo: ")
