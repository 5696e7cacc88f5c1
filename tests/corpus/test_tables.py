"""Lists of every kind give the same rows; faulty ones are refused."""

import json
from pathlib import Path

import pytest

from fvlm.core.errors import SourceError
from tests.corpus.conftest import listed, touch


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
