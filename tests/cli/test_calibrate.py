"""One small trial through the real stages: figures, what is kept, and how a failure is told."""

import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from fvlm.calibration import cases, trials
from fvlm.calibration.trials import PASSES, Trial
from fvlm.cli import calibrate
from fvlm.core.errors import FvlmError
from fvlm.core.io import read_json
from pipeline import paths
from tests.projects import forks

TEMPTING = ("handicapped_coarse", "message_channel")


@pytest.fixture
def project(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace with a preset of tiny models and one trial."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("FVLM_CACHE", str(workspace / "cache"))
    monkeypatch.setattr(sys, "executable", str(forks().bin / "python"))
    trial = Trial(
        "noise_control",
        "noise_control",
        1,
        blocks=3,
        layer=2,
        steps=2,
        replicated=False,
        coarse_only=True,
    )
    monkeypatch.setattr(calibrate, "TRIALS", (trial,))
    monkeypatch.setattr(calibrate, "MESSAGE_TRIAL", trial)
    monkeypatch.setattr(calibrate, "SPOILT_TRIAL", trial)
    monkeypatch.setattr(cases, "FILMS", 2)
    preset: dict[str, dict[str, Any]] = {
        "collect": {"control_clips": 6},
        "filter": {"min_seconds": 20.0, "max_seconds": 60.0, "val_fraction": 0.5},
        "decode": {
            "num_frames": 8,
            "frame_size": 16,
            "frames_per_second": 0.0,
            "clips_per_video": 1,
        },
        "encode": {
            "dino": str(workspace / "weights/dino"),
            "vae": str(workspace / "weights/vae"),
            "dino_layers": 0,
            "layer": 3,
        },
        "model": {
            **{"llm": "untrained:32x1", "llm_layers": 0, "head": "film", "head_channels": 4},
            **{"query_layers": 0},
        },
        "train": {"num_frames": 8, "batch_size": 4, "warmup_samples": 0, "token_noise": 0.0},
        "calibrate": {"seeds": [5]},
    }
    YAML().dump(preset, workspace / paths.CALIBRATION_PRESET)
    return workspace


def test_figures_and_reuse(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FvlmError, match=r"2 requirements are not met, see metrics/calibrate.json"):
        calibrate.main([])
    found = read_json(paths.CALIBRATE_METRICS)
    assert [line.split()[0] for line in found["failures"]] == [
        f"{name}_caught" for name in TEMPTING
    ]
    assert found["noise_control_videos"] > 0
    assert found["noise_control_seeds"] == 1
    for name in PASSES:
        assert found[f"noise_control_gain_{name}"] < 1  # 8 clips of training: nothing is learned
    for case in ("handicapped_coarse", "message_channel", "replicates"):
        assert found[f"{case}_verdict"] == "inconclusive"
        # 2 steps of training make no model that could be spoilt: these two tempted nobody.
        assert found[f"{case}_caught"] == int(case not in TEMPTING)
    assert found["message_channel_reference"] == pytest.approx(1, abs=1e-6)
    assert found["noise_control_coarse_only_low"] is not None
    assert {"calibrated", "failures", "noise_control_ratio_low", "noise_control_shuffled"} <= set(
        found
    )
    made = {path: path.stat().st_mtime_ns for path in project.glob("build/calibrate/*/*.log")}
    assert {path.stem for path in made} == {
        "collect",
        "filter",
        "decode",
        "encode",
        "train",
        "evaluate",
    }
    with pytest.raises(FvlmError, match="2 requirements"):
        calibrate.main([])
    assert made == {path: path.stat().st_mtime_ns for path in made}
    monkeypatch.setattr(trials, "LEAK_BELOW", 0.0)
    with pytest.raises(FvlmError, match=r"5 requirements are not met, see metrics/calibrate.json"):
        calibrate.main([])
    missed = read_json(paths.CALIBRATE_METRICS)
    assert (missed["calibrated"], len(missed["failures"])) == (False, 5)
    assert missed["noise_control_gain_fine"] == found["noise_control_gain_fine"]


def test_a_failed_stage_is_told_with_its_last_lines(project: Path) -> None:
    preset = YAML().load(project / paths.CALIBRATION_PRESET)
    preset["filter"]["min_seconds"] = 50.0  # clips last 24 s
    YAML().dump(preset, project / paths.CALIBRATION_PRESET)
    with pytest.raises(FvlmError, match=r"filter failed in build.calibrate.noise_control"):
        calibrate.main([])
