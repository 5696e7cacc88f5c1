"""Every regular video file is listed once, whatever its name; all else is counted."""

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.corpus.conftest import ids, list_with_rest, listed, touch


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
