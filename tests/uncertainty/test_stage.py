"""The stage on real shards with a tiny tower: what it writes, resumes and refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

import fvlm
from fvlm.errors import FvlmError, ParamsError
from fvlm.shards.manifest import write_manifest
from fvlm.shards.write import sample_key, write_shard
from fvlm.uncertainty.sampling import UncertaintyParams
from pipeline import uncertainty

STORED, SIZE = 6, 32
TABLES = (uncertainty.FRAMES, uncertainty.BY_PASSES)
PICTURES = (uncertainty.CURVE, uncertainty.SHEET)
Project = Callable[..., None]


def write_clips(counts: dict[str, int]) -> None:
    rng, shards = np.random.default_rng(0), []
    for split, count in counts.items():
        samples = []
        for number in range(count):
            video_id = f"{split}/number {number}.mp4"
            frames = rng.integers(0, 256, (STORED, 3, SIZE, SIZE), np.uint8)
            frames[:, :, :, : 4 * number] = 90  # clips differ in how much there is to see
            samples.append(
                (sample_key(video_id), {"frames.npy": frames, "json": {"video_id": video_id}})
            )
        name = f"{split}-000000.tar"
        facts = write_shard(uncertainty.CLIPS / name, samples)
        shards.append({"name": name, "split": split} | vars(facts))
    write_manifest(uncertainty.CLIPS, {"stage": "decode", "shards": shards})


@pytest.fixture
def project(
    folder_of: Callable[[str], Path],
    params_of: Callable[..., UncertaintyParams],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Project:
    """project(**params) makes a project folder with clips and parameters, and goes there."""

    def make(*, clips: dict[str, int] | None = None, **values: Any) -> None:
        monkeypatch.chdir(tmp_path)
        write_clips({"train": 4, "val": 2} if clips is None else clips)
        values = {"model": str(folder_of("dinov2")), "trials": 3} | values
        document = {"uncertainty": params_of(**values).model_dump()}
        Path("params.yaml").write_text(json.dumps(document))

    return make


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_what_it_writes(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project()
    uncertainty.main()
    metrics = json.loads(uncertainty.METRICS.read_text())
    assert (metrics["frames"], metrics["clips"], metrics["trials"]) == (12, 6, 3)
    for variant in ("pre", "post"):
        assert -1 < metrics[f"{variant}_icc_low"] < metrics[f"{variant}_icc"] <= 1
        assert metrics[f"{variant}_verdict"] in {"usable", "marginal", "failed"}
        assert 0 <= metrics[f"{variant}_blur_rising"] <= 1
        assert 0 < metrics[f"{variant}_downsample_wilcoxon_p"] <= 1
        assert metrics[f"{variant}_icc_clip_low"] <= metrics[f"{variant}_icc_clip_high"]
    assert all(not isinstance(value, dict | list) for value in metrics.values())

    frames, by_passes = (rows_of(path) for path in TABLES)
    assert [row["frame"] for row in frames[:2]] == ["1", "4"]
    assert {row["video_id"] for row in frames} == {
        *(f"train/number {number}.mp4" for number in range(4)),
        *(f"val/number {number}.mp4" for number in range(2)),
    }
    assert all(float(row["post_mean"]) > 0 for row in frames)
    assert [(row["variant"], row["passes"]) for row in by_passes] == [
        ("pre", "4"), ("pre", "8"), ("post", "4"), ("post", "8")
    ]  # fmt: skip
    for path in PICTURES:
        assert imread(path).std() > 0.05
    assert list(Path(".state/uncertainty").iterdir()) == []
    assert "post: {'icc': " in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(project: Project) -> None:
    """SIGKILL in the middle; the results are those of a run that was left alone, to the bit."""
    project(passes=16, trials=2, clips={"train": 5})
    uncertainty.main()
    expected = [path.read_bytes() for path in (*TABLES, *PICTURES)]
    for path in (*TABLES, *PICTURES):
        path.unlink()
    code = "import fvlm.uncertainty.sampling as s; s.SAVE_SECONDS = 0; import torch; " \
           "torch.set_num_threads(1); from pipeline.uncertainty import main; main()"  # fmt: skip
    root = str(Path(next(iter(fvlm.__path__))).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root}, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not list(Path(".state").glob("uncertainty/*.safetensors")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not any(path.exists() for path in TABLES)
    uncertainty.main()
    assert [path.read_bytes() for path in (*TABLES, *PICTURES)] == expected


def test_clips_are_chosen_by_their_keys(
    project: Project, params_of: Callable[..., UncertaintyParams]
) -> None:
    project()
    chosen = [
        {name.clip for name in uncertainty.load_frames(params_of(max_clips=count))[1]}
        for count in (3, 4)
    ]
    assert [len(clips) for clips in chosen] == [3, 4]
    assert chosen[0] < chosen[1]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"frames_per_clip": 7}, r"frames_per_clip \(7\) must be <= decode\.num_frames \(6\)"),
        ({"sites": ["encoder.layer.9.mlp.fc2"]}, r"nearest: encoder\.layer\.\d\.mlp\.fc2"),
        ({"clips": {"train": 1}, "frames_per_clip": 1}, "at least 2 frames are needed, got 1"),
        ({"downsample": 64}, r"uncertainty\.downsample: must be at most decode\.size"),
    ],
)
def test_what_it_refuses(project: Project, values: dict[str, Any], problem: str) -> None:
    project(**values)
    with pytest.raises(ParamsError, match=problem):
        uncertainty.main()
    assert not uncertainty.METRICS.exists()


def test_frames_that_are_not_there(project: Project) -> None:
    project(clips={})
    with pytest.raises(ParamsError, match="data/decode holds no clips"):
        uncertainty.main()
    (uncertainty.CLIPS / "manifest.json").unlink()
    with pytest.raises(FvlmError, match=r"manifest\.json not found; run `dvc repro`"):
        uncertainty.main()
