"""Incremental builds: what is known is linked, what is new is computed, nothing is left behind."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.errors import ShardError
from fvlm.shards.build import ShardPlan, build_shards, write_record
from fvlm.shards.manifest import Manifest, Note
from fvlm.shards.plan import Member
from fvlm.shards.reuse import ShardRecord

MANIFEST = Manifest(stage="s", made_by="", recipe={})
NOTE = Note(video_id="b", reason="r", message="m")


def manifest(project: Any) -> Any:
    return json.loads(project.out["manifest.json"])


def test_manifest_describes_the_files(project: Any) -> None:
    shards = project.run()
    document = manifest(project)
    assert (document["stage"], document["recipe"]) == ("toy", {"scale": 1})
    assert len(document["shards"]) == shards
    assert {entry["name"] for entry in document["shards"]} == set(project.out) - {"manifest.json"}
    for entry in document["shards"]:
        assert entry["bytes"] == len(project.out[entry["name"]])
        assert entry["name"].startswith(entry["split"] + "-000")
    assert sum(entry["samples"] for entry in document["shards"]) == 14
    (note,) = document["quarantined"]
    assert note["video_id"] == "broken.mp4"
    assert note["shard"] in project.log


def test_nothing_changed_computes_nothing_and_repeats_the_notes(
    project: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    project.run()
    first = project.out
    shutil.rmtree("data/toy")  # as DVC does before a run
    capfd.readouterr()
    assert project.run() == 0
    assert project.out == first
    assert f"toy: {len(set(project.log))} of " in capfd.readouterr().out


def test_without_dvc_the_output_in_place_is_replaced(project: Any) -> None:
    project.run()
    project.fill(videos=["a.mp4"])
    assert project.run() == 1
    assert set(project.out) == {"train-000000.tar", "manifest.json"}
    assert not project.leftovers


def test_one_more_video_computes_few_shards(project: Any) -> None:
    total = project.run()
    videos = Path("videos.txt").read_text().splitlines()
    project.fill(videos=[*videos, "clip 99.mp4"])
    assert project.run() <= 3 < total
    incremental = project.out
    shutil.rmtree(".state")
    project.run()
    assert project.out == incremental


def test_order_of_the_listing_does_not_matter(project: Any) -> None:
    project.run()
    first = project.out
    videos = Path("videos.txt").read_text().splitlines()
    shutil.rmtree(".state")
    project.fill(videos=videos[::-1])
    project.run()
    assert project.out == first


def test_kept_shards_cost_no_disk_and_follow_the_last_run(project: Any) -> None:
    project.run()
    files = {path.stat().st_ino for path in Path("data/toy").glob("*.tar")}
    assert {path.stat().st_ino for path in project.kept} == files
    project.fill(scale=2)
    project.run()
    files = {path.stat().st_ino for path in Path("data/toy").glob("*.tar")}
    assert {path.stat().st_ino for path in project.kept} == files


def test_without_hard_links_shards_are_copied_and_not_kept(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.run()
    first = project.out
    shutil.rmtree(".state")

    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    project.run()
    assert project.out == first
    assert not project.kept
    assert not project.leftovers


def test_a_damaged_kept_shard_is_computed_again(
    project: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    project.run()
    first = project.out
    shutil.rmtree("data/toy")
    damaged = project.kept[1]
    data = bytearray(damaged.read_bytes())
    data[5000] ^= 1
    damaged.write_bytes(data)
    assert project.run() == 1
    assert project.out == first
    assert damaged.name in capfd.readouterr().err


@pytest.mark.usefixtures("project")
def test_an_error_of_a_maker_keeps_what_is_finished() -> None:
    def make(plan: ShardPlan, path: Path) -> ShardRecord:
        if plan.members[0].key == "b":
            raise RuntimeError("decoder on fire")
        return write_record(path, [("a", {"json": 1})], [])

    plans = [ShardPlan.of("train", [Member(key, key)], {}) for key in ("a", "b")]
    arguments: Any = {"plans": plans, "out": Path("data/s"), "manifest": MANIFEST}
    with pytest.raises(RuntimeError, match="on fire"):
        build_shards(**arguments, make=make)
    assert not Path("data/s").exists()
    seen: list[str] = []

    def make_rest(plan: ShardPlan, path: Path) -> ShardRecord:
        seen.append(plan.members[0].key)
        return write_record(path, [], [NOTE])

    events: list[tuple[str, bool]] = []
    made = build_shards(
        **arguments,
        make=make_rest,
        on_shard=lambda plan, _, reused: events.append((plan.members[0].key, reused)),
    )
    assert seen == ["b"]
    assert events == [("a", True), ("b", False)]
    assert [entry.name for entry in made.shards] == ["train-000000.tar"]
    assert [(note.video_id, note.shard) for note in made.quarantined] == [
        ("b", plans[1].fingerprint)
    ]


@pytest.mark.usefixtures("project")
def test_shards_are_made_side_by_side_and_stand_in_the_order_of_their_plans() -> None:
    plans = [ShardPlan.of("train", [Member(key, key)], {}) for key in "abc"]
    others = threading.Barrier(3, timeout=60)

    def make(plan: ShardPlan, path: Path) -> ShardRecord:
        others.wait()  # nobody ends before all have begun
        return write_record(path, [(plan.members[0].key, {"json": 1})], [])

    out = Path("data/s")
    made = build_shards(plans=plans, make=make, out=out, manifest=MANIFEST, side_by_side=3)
    assert [entry.fingerprint for entry in made.shards] == [plan.fingerprint for plan in plans]


def test_repeated_plans_are_errors(project: Any) -> None:
    plan = ShardPlan.of("train", [Member("a", "a")], {})
    arguments: Any = {"out": project.folder / "s", "manifest": MANIFEST}
    with pytest.raises(ShardError, match="two planned shards"):
        build_shards(
            **arguments, plans=[plan, plan], make=lambda _, path: write_record(path, [], [])
        )
