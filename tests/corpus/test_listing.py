"""From a source to its videos, their ids and groups; faults are named together."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from fvlm.core.errors import ParamsError, SourceError
from fvlm.core.params import Params, validate_params
from fvlm.corpus.listed import ListedVideo
from fvlm.corpus.listing import CollectParams, list_videos
from tests.corpus.conftest import ids, list_with_rest, listed, touch


def test_a_row(tmp_path: Path) -> None:
    path = touch(tmp_path / "a" / "cat.mp4")
    touch(tmp_path / "a" / "cat.txt", "\ufeffA cät sleeping.\n".encode())
    os.utime(path, ns=(5, 7))
    stamp = [5, 7, path.stat().st_ctime_ns, path.stat().st_ino]
    expected = ListedVideo("a/cat.mp4", str(path), 5, stamp, "A cät sleeping.", group="a/cat.mp4")
    assert listed(str(tmp_path)) == [expected]


def test_one_video(tmp_path: Path) -> None:
    touch(tmp_path / "a.MP4")
    touch(tmp_path / "a.txt", b"Seen.")
    touch(tmp_path / "b.mp4")
    videos, left_out = list_with_rest(tmp_path / "a.MP4")
    assert [(video.video_id, video.caption) for video in videos] == [("a.MP4", "Seen.")]
    assert not left_out


def test_raw_streams_without_a_rate_are_left_out_with_advice(tmp_path: Path) -> None:
    touch(tmp_path / "a.mjpeg")
    with pytest.raises(SourceError, match=r"only 1 \.mjpeg; wrap \.mjpeg: ffmpeg -framerate RATE"):
        listed(tmp_path)
    touch(tmp_path / "b.h264")
    assert ids(tmp_path) == ["b.h264"]


def test_metadata_beside_the_videos_of_a_folder(tmp_path: Path) -> None:
    """As the model hub's data sets have it; in subfolders, too."""
    for name in ("a.mp4", "b.mp4", "train/c.mp4", "train/d.mp4", "train/e.mp4", "p.jpg"):
        touch(tmp_path / name)
    touch(tmp_path / "b.txt", b"beside")
    rows = "a.mp4,one,Metropolis\nb.mp4,,\ntrain/d.mp4,four,\np.jpg,six,\n"
    touch(tmp_path / "metadata.csv", f"file_name,text,group\n{rows}".encode())
    third = {"file_name": "c.mp4", "caption": "three", "video_id": "third"}
    fifth = {"file_name": "e.mp4", "caption": "five"}
    lines = "\n".join(map(json.dumps, (third, fifth)))
    touch(tmp_path / "train" / "metadata.jsonl", lines.encode())
    for source in (tmp_path, tmp_path / "**"):
        videos, left_out = list_with_rest(source)
        assert {video.video_id: (video.caption, video.group) for video in videos} == {
            "a.mp4": ("one", "Metropolis"),
            "b.mp4": ("beside", "b.mp4"),
            "third": ("three", "third"),
            "train/d.mp4": ("four", "train/d.mp4"),
            "train/e.mp4": ("five", "train/e.mp4"),
        }
        assert left_out == {".txt": 1, ".jpg": 1, ".csv": 1, ".jsonl": 1}


def test_other_files_of_that_name_say_nothing(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    touch(tmp_path / "metadata.csv", b"path,text\ngone.mp4,one\n")
    assert [video.caption for video in listed(tmp_path)] == [""]
    with pytest.raises(SourceError, match=r"metadata\.csv:2: 'gone\.mp4' cannot be found"):
        listed(tmp_path, path_column="path")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"metadata.csv": "file_name\na.mp4\ngone.mp4\n\nlost.mp4\n"},
            r"metadata\.csv:3: 'gone\.mp4' cannot.*\n.*metadata\.csv:5: 'lost\.mp4' cannot",
        ),
        (
            {"metadata.csv": "file_name\na.mp4\n", "metadata.jsonl": '{"file_name": "a.mp4"}'},
            r"metadata\.jsonl: .*a\.mp4 stands in another such file already",
        ),
        ({"metadata.csv": "file_name,video_id\na.mp4,b.mp4\n"}, "2 videos in .* the id 'b.mp4'"),
    ],
)
def test_faulty_metadata(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name in ("a.mp4", "b.mp4"):
        touch(tmp_path / name)
    for name, content in files.items():
        touch(tmp_path / name, content.encode())
    with pytest.raises(SourceError, match=message):
        listed(tmp_path)


def test_a_list_names_videos_and_the_films_they_were_cut_from(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        touch(tmp_path / name)
    lists = tmp_path / "list.csv"
    lists.write_text(f"path,video_id,group\n{tmp_path}/a.mp4,first,\nb.mp4,,Metropolis\nc.mp4,,\n")
    found = {video.video_id: video.group for video in listed(str(lists))}
    assert found == {"first": "first", "b.mp4": "Metropolis", "c.mp4": "c.mp4"}
    lists.write_text("path,video_id\na.mp4,x\nb.mp4,x\n")
    with pytest.raises(SourceError, match=r"list.csv:3: 'x' is the id of line 2 already"):
        listed(str(lists))


@pytest.mark.parametrize(
    ("expression", "groups"),
    [
        ("", ["alien-1.mp4", "alien-2.mp4", "other.mp4"]),
        (r"^(\w+)-\d", ["alien", "alien", "other.mp4"]),
        (r"^\w+", ["alien", "alien", "other"]),
        (r"(x)?alien", ["alien-1.mp4", "alien-2.mp4", "other.mp4"]),
    ],
)
def test_an_expression_finds_the_film_in_the_id(
    tmp_path: Path, expression: str, groups: list[str]
) -> None:
    for name in ("alien-1.mp4", "alien-2.mp4", "other.mp4"):
        touch(tmp_path / name)
    source, seed = str(tmp_path), 0
    params = CollectParams(source=source, group=expression, control_clips=2, control_seed=seed)
    videos, _ = list_videos(params)
    assert [video.group for video in videos] == groups


def test_what_is_no_expression_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"must be a regular expression, got '\('"):
        CollectParams(source="x", group="(", control_clips=2, control_seed=0)


def test_moving_a_list_with_its_videos_changes_no_id(tmp_path: Path) -> None:
    ids = []
    for place in ("here", "there"):
        folder = tmp_path / place
        video = touch(folder / "videos" / "a.mp4")
        (folder / "list.csv").write_text(f"path\n{video}\n")
        ids.append([(video.video_id, video.group) for video in listed(str(folder / "list.csv"))])
    assert ids[0] == ids[1] == [("videos/a.mp4", "videos/a.mp4")]


def test_faulty_rows_are_named_together(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    rows: list[object] = [
        {"path": "a.mp4"},
        {"path": "./a.mp4"},
        {"path": "missing.mp4"},
        {"path": 3},
        {"caption": "no path"},
        {"path": "a.mp4", "caption": 5},
        {"path": "a.mp4", "group": 5},
        {"path": "."},
        {"path": "nul\0.mp4"},
        {"path": "\ud800.mp4"},
    ]
    lists = tmp_path / "list.jsonl"
    lists.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SourceError) as error:
        listed(str(lists))
    message = str(error.value)
    assert f"{lists}:1:" not in message
    assert all(f"{lists}:{line}: " in message for line in range(2, 11))
    assert "'./a.mp4' stands in line 1 already" in message


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    lists = tmp_path / "list.csv"
    names = [f"{number}.mp4" for number in range(100)]
    for number in (0, 50, 97):
        touch(tmp_path / names[number])
    lists.write_text("\n".join(["path", *names]))
    with pytest.raises(SourceError) as error:
        listed(lists)
    message = str(error.value)
    assert all(f"{lists}:{line}: '{line - 2}.mp4' cannot be found" in message for line in (3, 22))
    assert message.endswith("and 77 more, in lines 23-51, 53-98, 100-101")


def test_what_is_not_there_says_what_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, fault in (
        ("empty", "no videos in {}"),
        ("nothere", "{} does not exist"),
        ("nothere/*.mp4", "{} does not exist"),
        ("empty/*.mp4", "no videos in {}"),
    ):
        path = tmp_path / source
        with pytest.raises(SourceError) as error:
            listed(path)
        message = str(error.value)
        assert message.startswith(f"{fault.format(path)}; collect.source may be a folder, a video,")
        assert "control" not in message  # these are nothing to those who have videos
    with pytest.raises(SourceError, match=r"does not exist \(did you mean positive_control\?\)"):
        listed("positive_contol")


def test_relative_to_the_users_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "checkout" / "clips" / "a.mp4")
    (tmp_path / "experiment").mkdir()
    monkeypatch.chdir(tmp_path / "experiment")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "checkout"))
    assert listed("clips")[0].path == str(tmp_path / "checkout" / "clips" / "a.mp4")


def test_an_experiment_reads_its_own_copy_of_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the project's videos, under the same ids: nothing moves between the splits."""
    project, experiment = tmp_path / "checkout", tmp_path / "experiment"
    for name in "ab":
        touch(project / "lists" / "clips" / f"{name}.mp4")
    touch(project / "lists" / "l.csv", f"path\n{project}/lists/clips/a.mp4\n".encode())
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_ROOT", str(project))
    before = listed("lists/l.csv")
    shutil.copytree(project / "lists", experiment / "lists", ignore=lambda *_: ["clips"])
    for source in ("lists/l.csv", f"{project}/lists/l.csv"):
        touch(project / "lists" / "l.csv", b"path\nclips/b.mp4\n")
        monkeypatch.chdir(experiment)
        assert listed(source) == before
        (project / "lists" / "l.csv").unlink()
        assert listed(source) == before
        touch(project / "lists" / "l.csv", b"path\nclips/b.mp4\n")
        monkeypatch.chdir(project)
        assert ids(source) == ["clips/b.mp4"]


def test_other_content_of_equal_size_and_time_is_seen(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.mp4", b"one")
    before, status = listed(tmp_path), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (3, status.st_mtime_ns)
    assert listed(tmp_path) != before


class Sections(Params):
    collect: CollectParams


@pytest.mark.parametrize(
    ("source", "message"),
    [
        *((blank, r"may be a folder, a video, a pattern") for blank in ("", "  ", "a\0b")),
        (3, "expected text, got 3"),
        (None, "expected text, got None"),
        ("https://example.org/a.mp4", r"is a URL: download the videos first.* may be a folder"),
        ("s3://bucket/videos", "is a URL"),
        ("hf://datasets/some/videos", "is a URL"),
    ],
)
def test_bad_parameters(source: object, message: str) -> None:
    with pytest.raises(ParamsError, match=rf"collect\.source: .*{message}"):
        validate_params(
            Sections,
            {"collect": {"source": source, "control_clips": 2, "control_seed": 0}},
            Path("params.yaml"),
        )


def test_starts_light() -> None:
    """Listing needs no decoder and no tensors."""
    code = "import sys, pipeline.collect; print({'av', 'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
