"""Presets set values in params.yaml and leave everything else alone."""

from pathlib import Path

import pytest

from fvlm.cli import check, preset
from fvlm.core.errors import ParamsError
from fvlm.core.params import load_params, overlay_params

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    return path


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_applies_and_keeps_comments(path: Path, params: Path) -> None:
    before = params.read_text()
    overlay_params(check.Sections, path, params)
    after = params.read_text()
    assert after != before
    assert after.count("#") == before.count("#")
    assert load_params(check.Sections, params).encode != load_params(check.Sections).encode


def test_the_published_features_set_up(params: Path) -> None:
    overlay_params(check.Sections, ROOT / "presets/features-rtx4090.yaml", params)
    found = load_params(check.Sections, params)
    assert (found.train.batch_size, found.train.num_frames, found.train.lr) == (64, 16, 1e-4)
    assert (found.decode.num_frames, found.decode.frame_size) == (24, 256)
    assert found.model.fine_iterations == 2
    assert found.train.steps == 50_000


def test_the_published_first_phase_on_frames(params: Path) -> None:
    overlay_params(check.Sections, ROOT / "presets/frames-phase1.yaml", params)
    found = load_params(check.Sections, params)
    train = found.train
    assert (train.input, train.num_frames, found.decode.num_frames) == ("frames", 8, 8)
    assert (found.decode.frame_size, train.dtype, train.max_grad_norm) == (256, "bfloat16", 1.0)
    assert (train.batch_size, train.gradient_accumulation_steps, train.samples_per_step) == (
        10,
        2,
        20,
    )
    assert (train.lr, train.encoder_lr, train.lambda_coarse) == (1e-4, 1e-4, 1.0)
    assert (train.steps, train.warmup_steps) == (50_000, 1_000)
    # The stored layer fits too, so that the same shards serve training on features.
    assert found.encode.layer + found.model.query_layers == 12


def test_an_empty_preset_changes_no_byte(params: Path, tmp_path: Path) -> None:
    before = params.read_bytes()
    (tmp_path / "empty.yaml").write_text("train: {}\n")
    overlay_params(check.Sections, tmp_path / "empty.yaml", params)
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
        overlay_params(check.Sections, tmp_path / "bad.yaml", params)
    assert params.read_bytes() == before


@pytest.mark.parametrize("arguments", [[], ["features"], ["frames-phase1", "features-rtx4090"]])
def test_a_command_line_without_one_known_name_lists_the_presets(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="2"):
        preset.main(arguments)
    assert "features-rtx4090" in capsys.readouterr().err


def test_a_named_preset_is_applied(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(params.parent)
    Path("presets").symlink_to(ROOT / "presets")
    preset.main(["features-rtx4090"])
    assert load_params(check.Sections).train.batch_size == 64
