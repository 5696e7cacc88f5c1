import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fvlm.core import io
from fvlm.core.errors import FvlmError
from fvlm.core.io import (
    atomic_write,
    hash_json,
    read_json,
    read_jsonl,
    write_csv,
    write_json,
    write_jsonl,
)


def test_an_error_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half of the new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_content_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.bin"
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_file_and_folder_are_synced_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, events = tmp_path / "a.bin", []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112
        fsync(descriptor)

    def record_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    write_json(path, 1)
    assert events == ["file", "rename", "folder"]


def test_a_value_that_is_no_json_leaves_the_old_document(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": 2})
    assert path.read_text() == '{\n  "b": 1,\n  "a": 2\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"))
    assert read_json(path) == {"b": 1, "a": 2}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"{", b"\xff\xff", b""])
def test_unreadable_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(FvlmError, match=r"a\.json not found"):
        read_json(path)
    path.write_bytes(content)
    with pytest.raises(FvlmError, match=r"a\.json is not valid JSON"):
        read_json(path)


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": 0.1 + 0.2, "b": "é\n\u2028"}, {}, {"c": [None, True]}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == 3


def test_names_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    write_jsonl(tmp_path / "a.jsonl", [{"video_id": name}])
    (row,) = read_jsonl(tmp_path / "a.jsonl")
    assert os.fsencode(row["video_id"]) == b"caf\xe9.mp4"
    assert hash_json(row) == hash_json({"video_id": name})


def test_a_table_has_a_header_empty_cells_and_names_as_they_are(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"video": os.fsdecode(b"caf\xe9, 2"), "ratio": 1.5},
        {"video": "b", "ratio": None},
    ]
    write_csv(tmp_path / "a.csv", rows)
    assert (tmp_path / "a.csv").read_bytes() == b'video,ratio\n"caf\xe9, 2",1.5\nb,\n'


@pytest.mark.parametrize(
    ("content", "line"), [(b'{}\n\n{"a": }\n', 3), (b"{}\n[1]\n", 2), (b"{}\n\xff\n", 2)]
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, line: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(FvlmError, match=rf"a\.jsonl:{line}: "):
        read_jsonl(path)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(FvlmError, match=r"a\.jsonl not found"):
        read_jsonl(tmp_path / "a.jsonl")


def test_hash_depends_on_content_and_not_on_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json({"a": [1, 2]}) != hash_json({"a": [2, 1]})
    assert hash_json(json.loads('{"a": 1.5}')) == hash_json({"a": 1.5})


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert io.sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea")


def test_state_lives_in_the_checkout_even_inside_an_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert io.state_folder() == tmp_path / ".state"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "checkout"))
    assert io.state_folder() == tmp_path / "checkout" / ".state"


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("FVLM_CACHE", str(tmp_path))
    assert io.cache_folder() == tmp_path
    monkeypatch.setenv("FVLM_CACHE", "")
    assert io.cache_folder() == tmp_path / "xdg" / "fvlm"
    for none in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", none)
        assert io.cache_folder() == tmp_path / "home" / ".cache" / "fvlm"


def test_without_a_home_folder_the_cache_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FVLM_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user that nobody knows
    with pytest.raises(FvlmError, match="set FVLM_CACHE to a folder"):
        io.cache_folder()


def test_leftovers_of_killed_writers_are_deleted_those_of_living_ones_stay(tmp_path: Path) -> None:
    own = io.temporary_name("a.json")
    dead, alive, elsewhere, old = (
        tmp_path / own.replace(f"-{os.getpid()}-", text)
        for text in ("-4194999-", f"-{os.getppid()}-", "-2-", "-3-")
    )
    elsewhere = elsewhere.with_name(".b.json.00000000-2-01234567.tmp")  # of another machine
    old = old.with_name(".b.json.00000000-3-01234567.tmp")
    users = tmp_path / ".a.json.x.tmp"
    for leftover in (dead, alive, elsewhere, users):
        leftover.touch()
    (old / "part").mkdir(parents=True)
    os.utime(old, (0, 0))
    write_json(tmp_path / "b.json", 1)
    assert set(tmp_path.iterdir()) == {tmp_path / "b.json", alive, elsewhere, users}


def test_a_folder_is_looked_through_once_a_run(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    leftover = tmp_path / io.temporary_name("a.json").replace(f"-{os.getpid()}-", "-4194999-")
    leftover.touch()
    write_json(tmp_path / "a.json", 2)
    assert leftover.exists()  # a write takes as long in a folder of a million files


WRITER = """
import sys, time
from pathlib import Path
from fvlm.core.io import atomic_write
path, letter, wait = Path(sys.argv[1]), sys.argv[2].encode(), sys.argv[3:]
with atomic_write(path) as file:
    file.write(letter * 1000)
    file.flush()
    (path.parent / sys.argv[2]).touch()
    while wait and not (path.parent / wait[0]).exists():
        time.sleep(0.01)
    file.write(letter * 1000)
"""


@pytest.mark.parametrize("before", [0, 3], ids=["equal numbers", "different numbers"])
def test_two_containers_on_one_folder_neither_mix_nor_delete(tmp_path: Path, before: int) -> None:
    """Both write the same file, in process namespaces of their own."""
    apart = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("process namespaces cannot be made here")
    path = tmp_path / "shard"
    environment = os.environ | {"PYTHONPATH": str(Path(io.__file__).parents[2])}

    def writer(letter: str, *wait: str, before: int) -> "subprocess.Popen[bytes]":
        start = "(true); " * before + f'"{sys.executable}" -c "$0" "$@"; exit $?'
        command = [*apart, "sh", "-c", start, WRITER, str(path), letter, *wait]
        return subprocess.Popen(command, env=environment)

    slow = writer("a", "go", before=before)
    while not (tmp_path / "a").exists():
        assert slow.poll() is None
    quick = writer("b", before=0)
    assert quick.wait() == 0
    assert path.read_bytes() == b"b" * 2000
    (tmp_path / "go").touch()
    assert slow.wait() == 0
    assert path.read_bytes() == b"a" * 2000
    assert {name.name for name in tmp_path.iterdir()} == {"shard", "a", "b", "go"}
