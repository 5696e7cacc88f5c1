"""Damaged and whole videos through collect, filter and decode: each has exactly one end."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.io import read_json, read_jsonl
from fvlm.shards.read import open_shards
from fvlm.video.reasons import Reason
from pipeline import collect, decode, filter, paths
from tests.pipeline.stages.conftest import ROOT
from tests.tiny import set_params
from tests.video.conftest import FPS, RECIPES
from tests.video.test_mutations import SOURCES, mutants

MUTANTS = range(0, 99, 2)  # every source and every mutator
SECONDS = {"shorter": 1.0, "shortest": 2.0, "middle": 4.0, "longest": 6.0, "longer": 7.0}
PARAMS: dict[str, dict[str, Any]] = {
    "collect": {"source": "videos"},
    "filter": {"min_seconds": 2.0, "max_seconds": 6.0},
    "decode": {
        "num_frames": 8,
        "frame_size": 32,
        "frames_per_second": 0.0,
        "clips_per_video": 1,
        "clips_per_shard": 4,
        "max_failed_fraction": 1.0,
    },
}
REASONS = {
    "accepted": {""},
    "filtered": {"too_short", "too_long"},
    "quarantined": {str(reason) for reason in Reason},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with parameters, and `videos`: mutants, and clean ones by duration."""
    monkeypatch.chdir(tmp_path)
    for folder in ("videos", "sources"):
        Path(folder).mkdir()
    # SVT-AV1 can hang in a process that ran other encoders: VP9 stands for it.
    recipes = {name: RECIPES[name] for name in SOURCES} | {"av1.mp4": RECIPES["vp9.mp4"]}
    sources = {name: recipe.render(Path("sources", name)) for name, recipe in recipes.items()}
    assert len(list(mutants(sources, Path("videos"), MUTANTS))) == len(MUTANTS)
    for name, seconds in SECONDS.items():
        recipe = replace(RECIPES["h264_b.mp4"], num_frames=round(seconds * FPS))
        recipe.render(Path("videos", f"{name}.mp4"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, PARAMS)


def ends() -> list[tuple[str, str, str]]:
    """What the stages' files say of the videos: (video_id, status, reason), once for every time."""
    rows = [row for row in read_jsonl(paths.MANIFEST) if row["status"] != "accepted"]
    found = [(row["video_id"], row["status"], row["reason"]) for row in rows]
    notes = read_json(paths.FRAMES / "manifest.json")["quarantined"]
    found += [(note["video_id"], "quarantined", note["reason"]) for note in notes]
    for split in ("train", "val"):
        with open_shards(paths.FRAMES, split=split) as reader:
            ids = [reader.metadata(row)["video_id"] for row in range(len(reader))]
        found += [(video_id, "accepted", "") for video_id in ids]
    return sorted(found)


@pytest.mark.usefixtures("project")
def test_every_file_is_accepted_filtered_or_quarantined() -> None:
    for stage in (collect, filter, decode):
        stage.main()
    found = ends()
    assert [end[0] for end in found] == sorted(path.name for path in Path("videos").iterdir())
    for _, status, reason in found:
        assert reason in REASONS[status]
    clean = {end for end in found if Path(end[0]).stem in SECONDS}
    assert clean == {
        ("shorter.mp4", "filtered", "too_short"),
        ("shortest.mp4", "accepted", ""),
        ("middle.mp4", "accepted", ""),
        ("longest.mp4", "accepted", ""),
        ("longer.mp4", "filtered", "too_long"),
    }
    check_metrics(found)


def check_metrics(found: list[tuple[str, str, str]]) -> None:
    """The metrics of both stages add up to what became of the files."""
    statuses = Counter(status for _, status, _ in found)
    filtered, decoded = read_json(paths.FILTER_METRICS), read_json(paths.DECODE_METRICS)
    assert filtered["inputs"] == len(found)
    assert filtered["filtered"] == statuses["filtered"]
    assert filtered["accepted"] == decoded["inputs"]
    assert decoded["decoded"] == statuses["accepted"] > 10
    assert filtered["quarantined"] + decoded["quarantined"] == statuses["quarantined"]
    assert min(filtered["quarantined"], decoded["quarantined"]) > 5
    reasons: Counter[str] = Counter()
    for metrics in (filtered, decoded):
        reasons.update({name: n for name, n in metrics.items() if name.startswith("reason_")})
    assert reasons == Counter(f"reason_{reason}" for _, _, reason in found if reason)
