"""What a change of parameters or code makes anew, and what comes back when it is taken back.

Real DVC in a git clone, with tiny videos and models; one workspace serves all tests of this file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.projects import Run
from tests.tiny import set_params

pytestmark = pytest.mark.slow

OUTPUTS = {
    "filter": "data/filter",
    "decode": "data/decode",
    "encode": "data/encode",
    "train": "models/foveated",
    "evaluate": "metrics/evaluate.json",
    "report": "reports/index.html",
}
# One key of its section, the value in the workspace, and another.
PARAMS: dict[str, tuple[str, Any, Any]] = {
    "decode": ("num_frames", 6, 7),
    "encode": ("layer", 2, 1),
    "train": ("lr", 1e-3, 2e-3),
    "evaluate": ("bootstrap_samples", 200, 300),
    "report": ("clips", 2, 1),
}
# A file, a text in it, and another one.
EDITS = {
    "filter": ("fvlm/video/probe.py", "fps=len(shown) / seconds", "fps=2 * len(shown) / seconds"),
    "decode": (
        "fvlm/video/decode.py",
        '{"frames": np.stack(found)}',
        '{"frames": np.stack(found) // 2}',
    ),
    "encode": ("fvlm/encoders/frames.py", "tokens.to(torch.float16)", "-tokens.to(torch.float16)"),
    "train": ("fvlm/model/film_head.py", "GELU", "ReLU"),
    "evaluate": (
        "fvlm/statistics/ratio.py",
        "factor = float(np.exp(",
        "factor = float(2 * np.exp(",
    ),
    "report": ("fvlm/report/page.html", ">Result</h2>", ">What came out</h2>"),
}


@pytest.fixture(scope="module")
def made(workspace: Path, run: Run) -> Callable[[str], dict[str, bytes]]:
    """made(stage): its output, after the pipeline has run once."""
    run("dvc", "repro")
    run("git", "add", ".")
    run("git", "commit", "-q", "-m", "result")

    def read(stage: str) -> dict[str, bytes]:
        out = workspace / OUTPUTS[stage]
        paths = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]
        return {str(path.relative_to(workspace)): path.read_bytes() for path in paths}

    return read


def is_back(said: str, stage: str) -> bool:
    """Whether DVC's cache of runs or the stage itself had it."""
    cached = f"Stage '{stage}' is cached - skipping run"
    return cached in said or f"{stage}: handed back" in said or "shards handed back" in said


@pytest.mark.parametrize("stage", PARAMS)
def test_there_and_back_over_one_parameter(
    workspace: Path, run: Run, made: Callable[[str], dict[str, bytes]], stage: str
) -> None:
    before, (key, value, other) = made(stage), PARAMS[stage]
    set_params(workspace, {stage: {key: other}})
    assert f"Running stage '{stage}'" in run("dvc", "repro", "-s", stage)
    assert made(stage) != before
    set_params(workspace, {stage: {key: value}})
    assert is_back(run("dvc", "repro", "-s", stage), stage)
    assert made(stage) == before


@pytest.mark.parametrize("stage", EDITS)
def test_there_and_back_over_one_edit(
    workspace: Path, run: Run, made: Callable[[str], dict[str, bytes]], stage: str
) -> None:
    before, (name, old, new) = made(stage), EDITS[stage]
    text = (workspace / name).read_text()
    assert text.count(old) >= 1
    (workspace / name).write_text(text.replace(old, new, 1))
    said = run("dvc", "repro", "-s", stage)
    assert f"Running stage '{stage}'" in said
    assert "handed back" not in said
    assert made(stage) != before
    (workspace / name).write_text(text)
    assert is_back(run("dvc", "repro", "-s", stage), stage)
    assert made(stage) == before


def test_a_seed_that_is_added_later_trains_only_itself(
    workspace: Path, run: Run, made: Callable[[str], dict[str, bytes]]
) -> None:
    before = made("train")
    set_params(workspace, {"train": {"seeds": [0, 1]}})
    said = run("dvc", "repro", "-s", "train")
    assert "train: handed back: trained before" in said
    assert "train: 16/16 steps" not in said
    assert "train seed-1: 16/16 steps" in said
    assert {name: made("train")[name] for name in before} == before
