"""The stage on real shards with a tiny tower: what it writes, resumes and refuses."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.numpy import load_file, save_file
from torch import Tensor

import fvlm
from fvlm.cli import forget
from fvlm.core.errors import FvlmError, ParamsError
from fvlm.core.io import sample_key
from fvlm.uncertainty.sampling import Sampler, UncertaintyParams
from fvlm.uncertainty.tower import Tower, load_tower
from fvlm.uncertainty.validity import blur, downsample
from pipeline import paths, uncertainty
from tests import tiny

STORED, SIZE = 6, 32
TABLES = (paths.UNCERTAINTY, paths.UNCERTAINTY_BY_PASSES)
PICTURES = tuple(paths.UNCERTAINTY_PICTURES / f"tiny_{kind}.png" for kind in ("icc", "frames"))
Project = Callable[..., None]


def write_clips(counts: dict[str, int], *, seed: int = 0) -> None:
    rng, shards = np.random.default_rng(seed), {}
    for split, count in counts.items():
        samples = []
        for number in range(count):
            video_id = f"{split}/number {number}.mp4"
            frames = rng.integers(0, 256, (STORED, 3, SIZE, SIZE), np.uint8)
            frames[:, :, :, : 4 * number] = 90  # clips differ in how much there is to see
            samples.append(
                (sample_key(video_id), {"frames.npy": frames, "json": {"video_id": video_id}})
            )
        shards[f"{split}-000000.tar"] = samples
    tiny.write_shards(paths.FRAMES, shards, tiny.frame_manifest(STORED, 3, SIZE, SIZE))


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


def edit_json(path: Path, **changes: object) -> None:
    """Change values of the document, or of its section `uncertainty` and of the tower there."""
    document = json.loads(path.read_text())
    section = document.get("uncertainty", document)
    tower = section.get("towers", {}).get("tiny", {})
    for name, value in changes.items():
        (tower if name in tower else section)[name] = value
    path.write_text(json.dumps(document))


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_what_it_writes(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project()
    uncertainty.main()
    (metrics,) = json.loads(paths.UNCERTAINTY_METRICS.read_text()).values()
    assert (metrics["frames"], metrics["clips"], metrics["trials"]) == (12, 6, 3)
    for variant in ("pre", "post"):
        for name in ("icc", "snr", "spearman_median"):
            low, value, high = (metrics[f"{variant}_{name}{end}"] for end in ("_low", "", "_high"))
            assert low is None or low <= value <= high
        assert metrics[f"{variant}_verdict"] in {"usable", "marginal", "failed"}
        assert 0 <= metrics[f"{variant}_blur_rising"] <= 1
        assert 0 < metrics[f"{variant}_downsample_wilcoxon_p"] <= 1
    assert all(not isinstance(value, dict | list) for value in metrics.values())

    frames, by_passes = (rows_of(path) for path in TABLES)
    assert [row["frame"] for row in frames[:2]] == ["1", "4"]
    assert {row["video_id"] for row in frames} == {
        *(f"train/number {number}.mp4" for number in range(4)),
        *(f"val/number {number}.mp4" for number in range(2)),
    }
    assert all(float(row["post_mean"]) > 0 for row in frames)
    assert [row["passes"] for row in by_passes] == ["4", "8"]
    for path in PICTURES:
        assert imread(path).std() > 0.05
    assert {row["tower"] for row in [*frames, *by_passes]} == {"tiny"}
    said = capsys.readouterr().out
    assert "tiny, post: {'icc': " in said
    # 12 frames, 8 passes of 3 trials and of one on each kind of changed frames
    assert re.search(r"uncertainty tiny: 480 passes, 4 in a forward: about 0\.\d+ hours", said)


def test_several_towers_score_as_each_does_alone(
    project: Project, folder_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """In one run; one that is added later leaves the scores of the others as they are."""
    project(clips={"train": 2})
    alone = tables()
    towers = json.loads(Path("params.yaml").read_text())["uncertainty"]["towers"]
    other = towers["tiny"] | {"model": str(folder_of("clip")), "sites": ["*.fc2"]}
    edit_json(Path("params.yaml"), towers={"other": other | {"batch_size": "auto"}} | towers)
    capsys.readouterr()
    both = tables()
    said = capsys.readouterr().out
    assert "uncertainty other: " in said
    assert "uncertainty tiny: " not in said  # nothing of it is scored again
    assert all(own.splitlines()[1:] == all_.splitlines()[-len(own.splitlines()) + 1 :]
               for own, all_ in zip(alone, both, strict=True))  # fmt: skip
    assert list(json.loads(paths.UNCERTAINTY_METRICS.read_text())) == ["other", "tiny"]
    pictures = {path.name for path in paths.UNCERTAINTY_PICTURES.iterdir()}
    assert pictures == {f"{n}_{kind}.png" for n in ("other", "tiny") for kind in ("icc", "frames")}
    edit_json(Path("params.yaml"), towers={"other": other})
    only = tables()
    assert [text.splitlines()[1] for text in only] == [text.splitlines()[1] for text in both]
    assert {path.name[:5] for path in paths.UNCERTAINTY_PICTURES.iterdir()} == {"other"}


def test_forgotten_scores_are_made_anew(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project(clips={"train": 2}, trials=2)
    found = tables()
    capsys.readouterr()
    for forgotten in (False, True, False):
        if forgotten:
            forget.main(["uncertainty"])
        assert tables() == found
        assert ("passes, 4 in a forward" in capsys.readouterr().out) is forgotten


def test_scores_are_those_of_the_frames_and_their_changes(
    project: Project, params_of: Callable[..., UncertaintyParams]
) -> None:
    project(clips={"train": 2})
    shown: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "plot_sheet", lambda *given, **_: shown.update(given=given))
        uncertainty.main()
    row = rows_of(paths.UNCERTAINTY)[1]

    stored, names = uncertainty.load_frames(params_of())
    frames, samples = torch.from_numpy(stored[1:2]), [names[1].sample]
    tower = load_tower("dinov2")[0]
    sampler = Sampler(tower, tower.sites, params_of(), torch.device("cpu"), 4)
    clean = sampler.scores(frames, samples, trials=3)[:, -1, :, 0]
    found = {"mean": clean.mean(axis=1), "sd": clean.std(axis=1, ddof=1)}
    for kind, pixels in (("blur", blur(frames, 1.0)), ("downsample", downsample(frames, 4))):
        found[kind] = sampler.scores(pixels, samples, trials=1)[:, -1, 0, 0]
    for kind, values in found.items():
        written = [float(row[f"{variant}_{kind}"]) for variant in ("pre", "post")]
        np.testing.assert_allclose(written, values, rtol=1e-5)
    # The sheet ranks the frames by the normalised embedding.
    np.testing.assert_array_equal(shown["given"][0], stored)
    expected = [float(row["post_mean"]) for row in rows_of(paths.UNCERTAINTY)]
    np.testing.assert_allclose(shown["given"][1], expected)


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_misunderstood_tower_scores_nothing(
    project: Project,
    params_of: Callable[..., UncertaintyParams],
    monkeypatch: pytest.MonkeyPatch,
    last: int,
) -> None:
    """Clean, blurred and small pixels are checked before the first score."""
    project(clips={"train": 2})
    first = torch.from_numpy(uncertainty.load_frames(params_of())[0][:1])
    pixels = (first, blur(first, 1.0), downsample(first, 4))[last]

    def check(_: Tower, given: Tensor) -> Tensor:
        if torch.equal(given, pixels):
            raise FvlmError("the tower in steps differs")
        return torch.zeros(1, 16)

    monkeypatch.setattr(Tower, "check", check)
    monkeypatch.setattr(Sampler, "scores", None)
    with pytest.raises(FvlmError, match="the tower in steps differs"):
        uncertainty.main()


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


@pytest.mark.parametrize(
    ("dtype", "p", "warned"),
    [("bfloat16", 0.001, True), ("bfloat16", 0.1, False), ("float32", 0.001, False)],
)
def test_scores_of_the_size_of_rounding(
    project: Project, capsys: pytest.CaptureFixture[str], dtype: str, p: float, warned: bool
) -> None:
    project(clips={"train": 1}, trials=2, dtype=dtype, p=p, sites=["*.0.mlp.fc?"])
    uncertainty.main()
    assert ("set uncertainty.dtype: float32" in capsys.readouterr().err) is warned


class KilledError(Exception):
    pass


@pytest.fixture
def killed(project: Project, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A small project whose run was killed when all scores were there, and its tables."""
    project(
        clips={"train": 2}, frames_per_clip=1, trials=2, passes=4, snapshots=[2],
        sites=["*.fc2"], bootstrap_samples=2,
    )  # fmt: skip
    monkeypatch.setattr(uncertainty, "draw", lambda *_: None)
    expected = tables()

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as context:
        context.setattr(uncertainty, "summarize", die)
        with pytest.raises(KilledError):
            uncertainty.main()
    return expected


def tables() -> list[bytes]:
    uncertainty.main()
    return [path.read_bytes() for path in TABLES]


def test_kept_scores_are_used(killed: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "scores", None)
    assert tables() == killed


def test_what_killed_runs_left_goes_after_a_week(killed: list[bytes]) -> None:
    edit_json(Path("params.yaml"), seed=1)
    young, old, new = sorted(Path(".state/uncertainty").iterdir())
    os.utime(old, (0, time.time() - 8 * 24 * 3600))
    os.utime(young, (0, time.time() - 6 * 24 * 3600))
    assert tables() != killed
    left = set(Path(".state/uncertainty").iterdir())
    assert len(left) == 2 + 3
    assert {young, new} < left


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("params.yaml", {"p": 0.2}),
        ("params.yaml", {"seed": 1}),
        ("params.yaml", {"passes": 5}),
        ("params.yaml", {"snapshots": [3]}),
        ("params.yaml", {"trials": 3}),
        ("params.yaml", {"dtype": "bfloat16"}),
        ("params.yaml", {"sites": ["*.fc1"]}),
        ("params.yaml", {"frames_per_clip": 2}),
        ("params.yaml", {"blur_sigma": 2.0}),
        ("params.yaml", {"downsample": 2}),
        ("dinov2/preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]}),
        ("dinov2/config.json", {"layer_norm_eps": 0.1}),
    ],
)
def test_kept_scores_of_other_parameters_are_not_used(
    killed: list[bytes], file: str, changes: dict[str, object]
) -> None:
    edit_json(Path(file), **changes)
    check_fresh(killed)


def write_other_clips() -> None:
    write_clips({"train": 2}, seed=1)


def write_other_weights() -> None:
    (path,) = Path("dinov2").glob("*.safetensors")
    weights = load_file(path)
    save_file({name: 1.1 * value for name, value in weights.items()}, path, {"format": "pt"})


@pytest.mark.parametrize("change", [write_other_clips, write_other_weights])
def test_kept_scores_of_other_files_are_not_used(
    killed: list[bytes], change: Callable[[], None]
) -> None:
    change()
    check_fresh(killed)


def check_fresh(before: list[bytes]) -> None:
    """A run beside the kept scores finds what one without them does, and that is something new."""
    found = tables()
    shutil.rmtree(".state")
    assert tables() == found
    assert found != before


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
        ({"downsample": 64}, r"uncertainty\.downsample: must be at most decode\.frame_size"),
    ],
)
def test_what_it_refuses(project: Project, values: dict[str, Any], problem: str) -> None:
    project(**values)
    with pytest.raises(ParamsError, match=problem):
        uncertainty.main()
    assert not paths.UNCERTAINTY_METRICS.exists()


def test_frames_that_are_not_there(project: Project) -> None:
    project(clips={})
    with pytest.raises(ParamsError, match="data/decode holds no clips"):
        uncertainty.main()
    (paths.FRAMES / "manifest.json").unlink()
    with pytest.raises(FvlmError, match=r"manifest\.json not found; run `dvc repro`"):
        uncertainty.main()
