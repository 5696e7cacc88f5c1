"""Every regular video file is listed once, whatever its name; faults are named together."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fvlm.core.errors import ParamsError, SourceError
from fvlm.core.params import Params, validate_params
from fvlm.corpus.captions import MAX_CAPTION_BYTES
from fvlm.corpus.listing import CollectParams, ListedVideo, list_videos


def touch(path: Path, content: bytes = b"video") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def listed(source: Path | str, **names: str) -> list[ListedVideo]:
    return list_with_rest(source, **names)[0]


def list_with_rest(source: Path | str, **names: str) -> tuple[list[ListedVideo], Counter[str]]:
    return list_videos(CollectParams(source=str(source), control_clips=2, control_seed=0, **names))


def ids(source: Path | str) -> list[str]:
    return [video.video_id for video in listed(str(source))]


def test_a_row(tmp_path: Path) -> None:
    path = touch(tmp_path / "a" / "cat.mp4")
    touch(tmp_path / "a" / "cat.txt", "\ufeffA cät sleeping.\n".encode())
    os.utime(path, ns=(5, 7))
    stamp = [5, 7, path.stat().st_ctime_ns, path.stat().st_ino]
    expected = ListedVideo("a/cat.mp4", str(path), 5, stamp, "A cät sleeping.", group="a/cat.mp4")
    assert listed(str(tmp_path)) == [expected]


def test_a_folder_is_walked_and_sorted(tmp_path: Path) -> None:
    for name in ("b.mkv", "a/z.MP4", "a/b/c.webm", "A.mp4", "a.mp4"):
        touch(tmp_path / name)
    for name in (".hidden.mp4", ".git/x.mp4", "notes.txt", "video", "mp4", ".mp4", "x.json"):
        touch(tmp_path / name)
    assert ids(tmp_path) == ["A.mp4", "a.mp4", "a/b/c.webm", "a/z.MP4", "b.mkv"]


def test_awkward_names(tmp_path: Path) -> None:
    names = [
        "new\nline.mp4",
        "ünï 🎬.mp4",
        "a" * 251 + ".mp4",
        os.fsdecode(b"\xff\xfe.mp4"),
        "'\".avi",
    ]
    for name in names:
        touch(tmp_path / name)
    videos = listed(str(tmp_path))
    assert [video.video_id for video in videos] == sorted(names)
    for video in videos:
        assert Path(json.loads(json.dumps(video.path))).read_bytes() == b"video"


def test_only_regular_files(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    os.mkfifo(tmp_path / "fifo.mp4")
    os.mkfifo(tmp_path / "a.txt")  # reading it would wait for ever
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    assert ids(tmp_path) == ["a.mp4"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root / "real" / "a.mp4")
    touch(outside / "b.mp4")
    (root / "0-earlier").symlink_to("real")
    (root / "linked").symlink_to(outside)
    (root / "real" / "up").symlink_to("..")
    (outside / "self").symlink_to(outside)
    (root / "file.mp4").symlink_to(outside / "b.mp4")
    assert ids(root) == ["file.mp4", "linked/b.mp4", "real/a.mp4"]


def test_everything_that_lies_there_is_counted(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for name in ("a.mp4", "a.txt", "b/c.JPG", "b/d.jpg", "README", ".x.mp4", ".git/y.mp4", "r.obu"):
        touch(root / name)
    touch(outside / "e.mkv")
    os.mkfifo(root / "fifo.mp4")
    (root / "gone.mp4").symlink_to("nowhere")
    (root / "loop.mp4").symlink_to("loop.mp4")
    (root / "tape.mp4").symlink_to("/dev/null")
    (root / "twice").symlink_to("b")
    (root / "linked").symlink_to(outside)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
        videos, left_out = list_with_rest(root)
    assert [video.video_id for video in videos] == ["a.mp4", "linked/e.mkv"]
    assert left_out == {
        ".txt": 1,
        ".jpg": 2,
        ".obu": 1,
        "file without a suffix": 1,
        "hidden": 2,
        "FIFO": 1,
        "dangling link": 1,
        "loop of links": 1,
        "device": 1,
        "socket": 1,
        "link to a folder that is listed": 1,
    }
    entries = [*root.iterdir(), *(root / "b").iterdir(), *outside.iterdir()]
    folders = [root / "b", root / "linked"]
    assert len(entries) == len(videos) + left_out.total() + len(folders)


def test_one_video(tmp_path: Path) -> None:
    touch(tmp_path / "a.MP4")
    touch(tmp_path / "a.txt", b"Seen.")
    touch(tmp_path / "b.mp4")
    videos, left_out = list_with_rest(tmp_path / "a.MP4")
    assert [(video.video_id, video.caption) for video in videos] == [("a.MP4", "Seen.")]
    assert not left_out


ALL = {"a.mp4", "a.mkv", "b/c.mp4", "b/d/e.mp4", "b/d/[x]/f.mp4"}
LINK = "link to a folder that is listed"


@pytest.mark.parametrize(
    ("pattern", "expected", "rest"),
    [
        ("*.mp4", {"a.mp4"}, {"not matching": 1, "hidden": 1}),
        ("**/*.mp4", ALL - {"a.mkv"}, {"not matching": 2, "hidden": 1, LINK: 1}),
        ("**", ALL, {".txt": 1, "hidden": 1, LINK: 1}),
        # The link leads out of b, and back into it.
        ("b/**/[ef].mp4", {"d/e.mp4", "d/[x]/f.mp4"}, {"not matching": 4, "hidden": 1, LINK: 1}),
        ("?/?.mp4", {"b/c.mp4"}, {"not matching": 2, "hidden": 1}),
        ("b/d/[x]/*.mp4", {"f.mp4"}, {}),  # a folder that there is means itself
        ("**/d/*", {"b/d/e.mp4"}, {"not matching": 4, ".txt": 1, "hidden": 1, LINK: 1}),
    ],
)
def test_a_pattern_takes_what_matches_of_a_folder(
    tmp_path: Path, pattern: str, expected: set[str], rest: dict[str, int]
) -> None:
    """And each file that does not is counted, as deep as the pattern reaches."""
    for name in (*ALL, "b/d/notes.txt"):
        touch(tmp_path / name)
    touch(tmp_path / ".hidden" / "g.mp4")
    (tmp_path / "b" / "up").symlink_to("..")
    videos, left_out = list_with_rest(tmp_path / pattern)
    assert {video.video_id for video in videos} == expected
    assert left_out == rest


def test_raw_streams_without_a_rate_are_left_out_with_advice(tmp_path: Path) -> None:
    touch(tmp_path / "a.mjpeg")
    with pytest.raises(SourceError, match=r"only 1 \.mjpeg; wrap \.mjpeg: ffmpeg -framerate RATE"):
        listed(tmp_path)
    touch(tmp_path / "b.h264")
    assert ids(tmp_path) == ["b.h264"]


def test_captions_beside_a_video(tmp_path: Path) -> None:
    for name in ("both", "json", "none", "null"):
        touch(tmp_path / f"{name}.mp4")
    touch(tmp_path / "both.txt", b" text \n")
    touch(tmp_path / "both.json", b'{"caption": "json"}')
    touch(tmp_path / "json.json", b'{"caption": "two\\nlines", "other": 1}')
    touch(tmp_path / "null.json", b'{"caption": null}')
    captions = {video.video_id: video.caption for video in listed(str(tmp_path))}
    assert captions == {
        "both.mp4": "text",
        "json.mp4": "two\nlines",
        "none.mp4": "",
        "null.mp4": "",
    }


def test_faulty_captions_are_named_together(tmp_path: Path) -> None:
    faults = {
        "latin.txt": b"caf\xe9",
        "list.json": b"[1]",
        "number.json": b'{"caption": 3}',
        "broken.json": b"{",
        "deep.json": b"[" * 50000,
        "long.txt": b"x" * (MAX_CAPTION_BYTES + 1),
    }
    for name, content in faults.items():
        touch(tmp_path / name, content)
        touch(tmp_path / name.replace(".txt", ".mp4").replace(".json", ".mp4"))
    with pytest.raises(SourceError) as error:
        listed(str(tmp_path))
    assert all(f"{tmp_path / name}: " in str(error.value) for name in faults)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_list(tmp_path: Path, kind: str) -> None:
    touch(tmp_path / "videos" / "b.bin")
    absolute = touch(tmp_path / "elsewhere" / "a.mp4")
    touch(tmp_path / "videos" / "b.txt", b"beside")
    rows = [
        {"path": "videos/b.bin", "caption": "", "extra": "x"},
        {"path": str(absolute), "caption": 'Says "hi",\nthen leaves.', "extra": "y"},
    ]
    lists = tmp_path / f"list.{kind}"
    if kind == "jsonl":
        lists.write_text("\n\n".join(map(json.dumps, rows)))
    else:
        quoted = str(rows[1]["caption"]).replace('"', '""')
        lists.write_text(
            f'\ufeffextra,path,caption\r\nx,videos/b.bin,\r\ny,{absolute},"{quoted}"\r\n',
            newline="",
        )
    first, second = listed(str(lists))
    assert (first.video_id, first.caption) == ("elsewhere/a.mp4", rows[1]["caption"])
    assert first.path == str(absolute)
    assert (second.video_id, second.caption) == ("videos/b.bin", "beside")
    assert second.path == str(tmp_path / "videos" / "b.bin")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "path;caption\na.mp4;Hello, you\n"),
        ("l.csv", 'file;Caption\r\n"a.mp4";"Hello, you"\r\n'),
        ("l.csv", ',Path,text\n0,a.mp4,"Hello, you"\n'),  # pandas writes a column without a name
        ("l.csv", 'path,caption,a;b\na.mp4,"Hello, you",\n'),
        ("l.tsv", "video\tdescription\na.mp4\tHello, you\n"),
        ("l.TSV", "path\tcaption\textra\na.mp4\tHello, you\n"),
        ("l.jsonl", '{"video_path": "a.mp4", "text": "Hello, you"}\n'),
        ("metadata.csv", 'file_name,text\na.mp4,"Hello, you"\n'),
        ("metadata.jsonl", '{"file_name": "a.mp4", "text": "Hello, you"}\n'),
        ("l.txt", "a.mp4\r\n\n"),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_kinds_of_lists(tmp_path: Path, name: str, content: str, mark: str) -> None:
    touch(tmp_path / "a.mp4")
    touch(tmp_path / name, (mark + content).encode())
    (video,) = listed(tmp_path / name)
    assert (video.video_id, video.path) == ("a.mp4", str(tmp_path / "a.mp4"))
    assert video.caption == ("" if name == "l.txt" else "Hello, you")


def test_a_column_without_a_name_is_no_caption(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    assert [v.caption for v in listed(touch(tmp_path / "l.csv", b",path\n0,a.mp4\n"))] == [""]


def test_columns_by_parameter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.mp4", "b.mp4"):
        touch(tmp_path / name)
    lists = touch(tmp_path / "l.csv", b"path,text,where,said\na.mp4,usual,b.mp4,asked for\n")
    assert [(v.video_id, v.caption) for v in listed(lists)] == [("a.mp4", "usual")]
    assert capsys.readouterr().out == "collect: l.csv: paths from `path`, captions from `text`\n"
    found = listed(lists, path_column="where", caption_column="said")
    assert [(v.video_id, v.caption) for v in found] == [("b.mp4", "asked for")]
    assert capsys.readouterr().out == "collect: l.csv: paths from `where`, captions from `said`\n"
    for names in ({"path_column": "clip"}, {"caption_column": "clip"}):
        with pytest.raises(SourceError, match=r"no column 'clip', only 'path', 'text', 'where'"):
            listed(lists, **names)


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"", "no videos in"),
        ("l.csv", b"clip,caption\na.mp4,x\n", "l.csv has no column of paths, called path, file_"),
        ("l.csv", b"clip,caption\na.mp4,x\n", "collect.path_column says; only 'clip', 'caption'"),
        ("l.csv", b"path\n\xff.mp4\n", "l.csv is not in UTF-8"),
        ("l.csv", b"path,caption\nl.csv,a, b\n", "l.csv:2: more fields than the header has"),
        ("l.csv", b"path\ns3://bucket/a.mp4\n", "l.csv:2: 's3://bucket/a.mp4' is a URL: download"),
        ("l.csv", b"path\n", "no videos in"),
        ("l.jsonl", b"[]\n", "l.jsonl:1: expected an object"),
        ("l.jsonl", b"\n{\n", "l.jsonl:2: not valid JSON"),
        ("l.jsonl", b"{}\n", "l.jsonl has no column of paths"),
        ("l.jsonl", b"\xff\n", "l.jsonl is not in UTF-8"),
        ("l.txt", b"\n", "no videos in"),
        ("l.parquet", b"video", "neither a folder, nor a video, nor a list"),
    ],
)
def test_faulty_sources(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(SourceError) as error:
        listed(str(touch(tmp_path / name, content)))
    assert message in str(error.value)


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


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sets(st.binary(min_size=1, max_size=40), min_size=1, max_size=5))
def test_any_file_name_survives(
    tmp_path_factory: pytest.TempPathFactory, names: set[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    expected = set()
    for name in names:
        name = name.replace(b"/", b"_").replace(b"\0", b"_").lstrip(b".") + b"v.mp4"
        touch(folder / os.fsdecode(name))
        expected.add(os.fsdecode(name))
    assert ids(folder) == sorted(expected)


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
