"""Clips of many lengths and files through the real stages: nothing is lost, little is made anew."""

import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fvlm.core.io import read_json, read_jsonl
from fvlm.core.params import load_params
from pipeline import collect, decode, filter, paths, report
from tests import tiny
from tests.pipeline.stages.conftest import render

CLIPS = {"frames_per_second": 3.0, "clips_per_video": 0}


@pytest.fixture
def folder(project: Path) -> Path:
    """The project, with videos of its own."""
    shutil.copytree(Path(read_jsonl(paths.VIDEOS)[0]["path"]).parent, project / "videos")
    return project


def run(project: Path, **sections: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the stages with these parameters; the JSON of every sample, with its key and frames."""
    tiny.set_params(project, sections)
    collect.main()
    filter.main()
    decode.main()
    samples = list[dict[str, Any]]()
    for shard in sorted(paths.FRAMES.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                key, kind = member.name.split(".", 1)
                if kind == "json":
                    samples[-1] |= json.load(file) | {"shard": shard.name}
                else:
                    samples.append({"key": key, "frames": np.load(io.BytesIO(file.read()))})
    return samples


def test_every_clip_of_every_video_is_accounted_for(folder: Path) -> None:
    """2 seconds of 8 frames are two clips of 3 frames at 3 frames/s; one video is damaged."""
    samples = run(folder, decode=CLIPS | {"max_failed_fraction": 0.3})
    metrics = read_json(paths.DECODE_METRICS)
    figures = [metrics[name] for name in ("videos", "inputs", "decoded", "quarantined")]
    assert figures == [10, 20, 18, 2] == [10, 20, len(samples), metrics["reason_decode_error"]]
    (note,) = read_json(paths.FRAMES / "manifest.json")["quarantined"]
    assert (note["video_id"], note["clips"]) == ("4.mp4", 2)
    cut = list(report.cut_videos(load_params(decode.Sections).decode))
    assert {video.video_id: (video.clips, video.failed, video.candidates) for video in cut} == {
        f"{number}.mp4": (0, 2, 2) if number == 4 else (2, 0, 2) for number in range(10)
    }
    spans = Counter((sample["start"], sample["end"]) for sample in samples)
    assert spans == {(0.0, 1.0): 9, (1.0, 2.0): 9}
    shards = {(sample["video_id"], sample["shard"]) for sample in samples}
    assert len(shards) == 9  # no video is in two of them
    splits = {row["video_id"]: row["split"] for row in read_jsonl(paths.MANIFEST)}
    assert all(sample["shard"].startswith(splits[sample["video_id"]]) for sample in samples)


def test_one_more_video_changes_few_shards(folder: Path) -> None:
    run(folder, decode=CLIPS, filter={"max_seconds": 5.0})
    before = {entry["fingerprint"] for entry in read_json(paths.FRAMES / "manifest.json")["shards"]}
    render(folder / "videos" / "new.mp4", seed=20, seconds=5)
    samples = run(folder)
    entries = read_json(paths.FRAMES / "manifest.json")["shards"]
    assert len([entry for entry in entries if entry["fingerprint"] not in before]) <= 3
    assert len(entries) > 6
    assert sum(sample["video_id"] == "new.mp4" for sample in samples) == 5


def test_parts_of_a_file_are_videos_of_one_group(folder: Path) -> None:
    film = folder / "films" / "film.mp4"
    film.parent.mkdir()
    render(film, seed=3, seconds=6)
    rows = ["path,start,end,caption", "films/film.mp4,0,2,first", "films/film.mp4,3.5,,rest"]
    rows += ["films/film.mp4,1,1.5,short", "films/film.mp4,7,8,behind"]
    rows += [f"videos/{number}.mp4,,,whole" for number in (0, 1)]
    (folder / "list.csv").write_text("\n".join(rows))
    samples = run(folder, collect={"source": "list.csv"}, decode=CLIPS | {"clips_per_video": 0})
    found = {row["video_id"]: row for row in read_jsonl(paths.MANIFEST)}
    assert {name: row["reason"] for name, row in found.items()} == {
        "films/film.mp4#t=0,2": "",
        "films/film.mp4#t=3.5": "",
        "films/film.mp4#t=1,1.5": "too_short",
        "films/film.mp4#t=7,8": "outside_video",
        "videos/0.mp4": "",
        "videos/1.mp4": "",
    }
    assert {row["group"] for row in found.values()} == {
        "films/film.mp4",
        "videos/0.mp4",
        "videos/1.mp4",
    }
    assert len({row["split"] for row in found.values() if row["group"] == "films/film.mp4"}) == 2
    parts = [sample for sample in samples if sample["group"] == "films/film.mp4"]
    parts.sort(key=lambda sample: sample["start"])
    assert [(s["start"], s["end"]) for s in parts] == [(0, 1), (1, 2), (3.5, 4.5), (4.5, 5.5)]
    # The square moves by a pixel a frame, 4 frames a second.
    lefts = [int(sample["frames"][0, 0].mean(axis=0).argmax()) for sample in parts]
    assert lefts[0] < lefts[1] < lefts[2] - 2  # then it leaves the picture


def test_a_video_that_is_shorter_than_a_clip_is_filtered(folder: Path) -> None:
    run(folder, decode={"span_seconds": 2.0, "frames_per_second": 0.0})
    assert read_json(paths.FILTER_METRICS)["accepted"] == 10
    tiny.set_params(folder, {"decode": {"span_seconds": 2.1}})
    with pytest.raises(Exception, match="10 filtered"):
        filter.main()
    assert {row["reason"] for row in read_jsonl(paths.MANIFEST)} == {"shorter_than_clip"}


def test_frames_at_three_a_second_are_a_third_of_a_second_apart(folder: Path) -> None:
    samples = run(folder, decode={"frames_per_second": 2.0, "num_frames": 4, "clips_per_video": 1})
    assert len(samples) == 9
    for sample in samples:
        gaps = np.diff(sample["pts_seconds"])
        assert gaps.tolist() == pytest.approx([0.5] * 3, abs=0.26)
        assert sample["frames"].shape == (4, 3, 16, 16)
        assert (sample["start"], sample["end"]) == (0.0, 2.0)


def render_shots(path: Path, seconds_of_shots: tuple[int, ...], *, seed: int) -> None:
    """Shots of noise that has nothing in common, 32x24, 4 frames/s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for shot, seconds in enumerate(seconds_of_shots):
            drawn = np.random.default_rng((seed, shot)).integers(0, 256, (3, 4, 3), np.uint8)
            picture = av.VideoFrame.from_ndarray(
                drawn.repeat(8, axis=0).repeat(8, axis=1), format="rgb24"
            )
            for _ in range(4 * seconds):
                picture.pts = None
                container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def test_clips_with_a_change_of_shot_are_left_out_and_told(folder: Path) -> None:
    """Clips are 2 s; the cuts are at 2 s (between two clips), at 3 s, and in every one."""
    videos = folder / "shots"
    videos.mkdir()
    for name, shots in {
        "between": (2, 2),
        "within": (3, 3),
        "all": (1, 2, 1),
        "none": (4,),
    }.items():
        render_shots(videos / f"{name}.mp4", shots, seed=len(name))
    sections: dict[str, dict[str, Any]] = {
        "collect": {"source": "shots"},
        "filter": {"max_seconds": 9.0},
        "decode": {"span_seconds": 2.0, "clips_per_video": 0, "frames_per_second": 0.0},
    }
    kept = run(folder, **sections)
    assert {row["cuts"] for row in read_jsonl(paths.MANIFEST)} == {None}  # not looked for
    assert len(kept) == 2 + 3 + 2 + 2
    avoided = run(folder, decode={"cuts": "avoid"})
    rows = {row["video_id"]: row for row in read_jsonl(paths.MANIFEST)}
    assert rows["within.mp4"]["cuts"] == pytest.approx([3.0], abs=0.01)
    assert rows["none.mp4"]["cuts"] == []
    assert (rows["all.mp4"]["status"], rows["all.mp4"]["reason"]) == ("filtered", "cuts_everywhere")
    spans = {(sample["video_id"], sample["start"]) for sample in avoided}
    assert spans == {
        *(("between.mp4", start) for start in (0.0, 2.0)),
        *(("within.mp4", start) for start in (0.0, 4.0)),
        *(("none.mp4", start) for start in (0.0, 2.0)),
    }
    metrics = read_json(paths.DECODE_METRICS)
    assert [metrics[name] for name in ("videos", "decoded", "with_cuts")] == [3, 6, 1]
    # Of videos that are filtered now, the manifest is the same with and without what is known.
    run(folder, filter={"max_seconds": 5.0})
    known = paths.MANIFEST.read_bytes()
    (row,) = (row for row in read_jsonl(paths.MANIFEST) if row["video_id"] == "within.mp4")
    assert (row["reason"], row["cuts"]) == ("too_long", None)
    shutil.rmtree(".state")
    run(folder)
    assert paths.MANIFEST.read_bytes() == known


def ask(path: Path, *rows: dict[str, Any]) -> None:
    told = {"question": "Where is the square?", "answer": "on the left"}
    path.write_text("".join(json.dumps(told | row) + "\n" for row in rows))


def test_a_question_is_asked_of_clips_that_contain_its_times_else_of_all(folder: Path) -> None:
    """Every question is accounted for, and no shard holds one: another makes none anew."""
    ask(
        folder / "videos/0.questions.jsonl",
        {"id": "all"},
        {"id": "first", "start": 0.2, "end": 0.9},
        {"id": "second", "start": 1.5},
        {"id": "across", "start": 0.5, "end": 1.5},
        {"id": "behind", "end": 7},
    )
    render(folder / "videos/long.mp4", seed=20, seconds=6)
    ask(folder / "videos/long.questions.jsonl", {"id": "of a video that is too long"})
    ask(folder / "more.jsonl", {"video": "1.mp4", "id": "of the file"}, {"video": "none.mp4"})
    run(folder, decode=CLIPS, collect={"questions": "more.jsonl"}, filter={"max_seconds": 5.0})
    key = {row["video_id"]: row["key"] for row in read_jsonl(paths.MANIFEST)}
    rows = read_jsonl(paths.QUESTIONS)
    assert [(row["key"], row["id"]) for row in rows] == [
        (f"{key['0.mp4']}-000000", "all"),
        (f"{key['0.mp4']}-000001", "all"),
        (f"{key['0.mp4']}-000000", "first"),
        (f"{key['0.mp4']}-000001", "second"),
        (f"{key['1.mp4']}-000000", "of the file"),
        (f"{key['1.mp4']}-000001", "of the file"),
    ]
    assert rows[0]["group"] == "0.mp4"
    assert rows[0]["answer"] == "on the left"
    counts = {k: v for k, v in read_json(paths.FILTER_METRICS).items() if k.startswith("questions")}
    assert counts == {
        "questions": 8,
        "questions_used": 4,
        "questions_outside_clips": 2,
        "questions_without_clips": 1,
        "questions_without_video": 1,
    }
    shards = {path.name: path.stat().st_ino for path in paths.FRAMES.glob("*.tar")}
    ask(folder / "more.jsonl", {"video": "1.mp4", "answer": "in the middle"})
    run(folder)
    assert {row["answer"] for row in read_jsonl(paths.QUESTIONS)} == {
        "on the left",
        "in the middle",
    }
    assert {path.name: path.stat().st_ino for path in paths.FRAMES.glob("*.tar")} == shards
