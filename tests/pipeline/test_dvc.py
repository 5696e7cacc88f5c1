"""What real DVC does with changed videos, lists and weights: one workspace, tests in order."""

import json
import os
import shutil
from pathlib import Path

import pytest

from fvlm.core.io import sample_key
from tests import tiny
from tests.pipeline.test_repro import commit, metrics, ran
from tests.projects import Run, render
from tests.tiny import set_params

TRY_AGAIN = "could not be read by"


@pytest.fixture(scope="module", autouse=True)
def decoded(workspace: Path, run: Run) -> None:
    """Seven accepted videos; one lies behind a link, so that it can be out of reach for a while."""
    (workspace / "far" / "away").mkdir(parents=True)
    shutil.move(workspace / "videos" / "bridge.mp4", workspace / "far" / "away")
    (workspace / "videos" / "bridge.mp4").symlink_to("../far/away/bridge.mp4")
    with (workspace / ".gitignore").open("a") as file:
        file.write("/far/\n")
    run("dvc", "repro", "decode")
    commit(run, "decoded")


def test_a_video_replaced_under_its_name_size_and_time_is_seen(workspace: Path, run: Run) -> None:
    street = workspace / "videos" / "street.mp4"
    before, rows = street.stat(), (workspace / "data/filter/manifest.jsonl").read_bytes()
    render(workspace / "other.mp4", "mpeg4", 4.0, seed=77)
    content = (workspace / "other.mp4").read_bytes()
    assert len(content) < before.st_size
    street.write_bytes(content.ljust(before.st_size, b"\0"))
    os.utime(street, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ran(run("dvc", "repro", "decode")) == ["collect", "filter", "decode"]
    assert (workspace / "data/filter/manifest.jsonl").read_bytes() != rows
    (workspace / "other.mp4").unlink()
    commit(run, "replaced")


def test_a_touched_video_and_a_new_caption_go_no_further_than_the_filter(
    workspace: Path, run: Run
) -> None:
    """Text is a table of its own, which no shard is made of."""
    (workspace / "videos" / "street.mp4").touch()
    (workspace / "videos" / "street.txt").write_text("A street at night.")
    assert ran(run("dvc", "repro", "decode")) == ["collect", "filter"]
    (line,) = (workspace / "data/text/captions.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "key": sample_key("street.mp4"),
        "video_id": "street.mp4",
        "caption": "A street at night.",
    }


@pytest.mark.parametrize("stage", ["filter", pytest.param("decode", marks=pytest.mark.slow)])
def test_a_video_out_of_reach_for_a_while_is_not_forgotten(
    workspace: Path, run: Run, stage: str
) -> None:
    """DVC takes a result without it for finished: every run says so, until its command was run."""
    before = {name: (workspace / name).read_bytes() for name in MADE}
    accepted = metrics(workspace, "decode")["inputs"]
    (workspace / "far" / "away").rename(workspace / "far" / "gone")
    if stage == "decode":
        run("python", "-m", "fvlm", "forget", stage)  # it would hand back without a look
    run("dvc", "repro", "-f", "-s", stage)
    (workspace / "far" / "gone").rename(workspace / "far" / "away")
    for _ in range(2):
        said = run("dvc", "repro", "decode")
        assert f"1 of these could not be read by {stage} the last time, such as bridge.mp4" in said
    assert metrics(workspace, "decode")["decoded"] == accepted - 2  # and a damaged one
    command = said[said.index(TRY_AGAIN) :].split("`")[1]
    run("sh", "-c", command + " decode")
    assert TRY_AGAIN not in run("dvc", "repro", "decode")
    assert {name: (workspace / name).read_bytes() for name in MADE} == before


MADE = ("data/filter/manifest.jsonl", "data/decode/manifest.json", "metrics/decode.json")


@pytest.mark.slow
def test_a_queued_experiment_has_the_list_of_its_commit(workspace: Path, run: Run) -> None:
    """Its list from git, its videos from the project."""
    names = ["street.mp4", "harbour.webm", "market.avi", "bridge.mp4"]
    rows = [f"../videos/{name}" for name in names]
    (workspace / "lists").mkdir()
    (workspace / "lists" / "l.csv").write_text("\n".join(["path", *rows]))
    set_params(workspace, {"collect": {"source": "lists/l.csv"}})
    commit(run, "a list")
    run(
        "dvc", "exp", "run", "--queue", "--name", "queued", "-S", "filter.max_seconds=9.5", "filter"
    )
    (workspace / "lists" / "l.csv").write_text("\n".join(["path", *rows[:3]]))
    run("sh", "-c", "dvc exp run --run-all > queue.log 2>&1; cat queue.log; rm queue.log")

    refs = run("git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (queued,) = [ref for ref in refs if ref.endswith("/queued")]
    assert run("git", "show", f"{queued}:lists/l.csv").split() == ["path", *rows]
    counts = json.loads(run("git", "show", f"{queued}:metrics/filter.json"))
    assert (counts["inputs"], counts["accepted"]) == (4, 4)
    run("git", "checkout", "-q", "lists")
    set_params(workspace, {"collect": {"source": "videos"}})
    commit(run, "the folder again")


@pytest.mark.slow
def test_weights_that_change_in_place_are_encoded_with(
    workspace: Path, run: Run, tmp_path: Path
) -> None:
    """In a folder of one's own, outside the project."""
    tiny.vae(8, 8, 8, 8).save_pretrained(tmp_path / "mine")
    set_params(workspace, {"encode": {"vae": str(tmp_path / "mine")}})
    run("dvc", "repro", "encode")
    before = (workspace / "data/encode/manifest.json").read_bytes()
    tiny.vae(8, 8, 8, 8).save_pretrained(tmp_path / "mine")
    assert ran(run("dvc", "repro", "encode")) == ["collect", "encode"]
    assert (workspace / "data/encode/manifest.json").read_bytes() != before
