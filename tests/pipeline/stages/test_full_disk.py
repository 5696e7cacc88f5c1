"""The real stages on a full disk: an error that names the file, nothing half, and then the rest."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.io import cache_folder
from fvlm.shards.reuse import ShardStore
from fvlm.shards.verify import verify_file
from pipeline import decode, paths

ROOT = Path(__file__).parents[3]
OUTS = {"decode": paths.FRAMES, "encode": paths.ENCODED}
Launch = Callable[[str], Any]


@pytest.fixture(params=OUTS)
def stage(request: pytest.FixtureRequest, project: Path) -> str:
    """Name of a stage that can run in the working directory."""
    if request.param == "encode":
        decode.main()
        shutil.rmtree(project / ".state")
    return str(request.param)


def output(folder: Path, stage: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / OUTS[stage]).glob("*")}


def expect_no_room(
    launcher: Any, folder: Path, expected: dict[str, bytes] | None = None, **order: Any
) -> None:
    assert launcher.run(folder, **order) == 1
    said = launcher.said
    assert "error: no room" in said
    assert "make room and run again" in said
    assert "Traceback" not in said
    names = (f".state/shards/{launcher.stage}/", f"/{launcher.stage}.json", "manifest.json")
    assert any(name in said for name in names), said
    assert output(folder, launcher.stage) in ({}, expected)
    check_kept(folder, launcher.stage)


def check_kept(folder: Path, stage: str) -> None:
    """No partial file under a final name: a shard that is kept is the one on record."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        for record in Path(f".state/shards/{stage}").glob("*.json"):
            remembered = ShardStore(stage, OUTS[stage]).recall(record.stem)
            if remembered and remembered.facts:
                facts = remembered.facts
                verify_file(record.with_suffix(".tar"), size=facts.bytes, sha256=facts.sha256)
        assert not list(Path(".state").rglob("*.tmp"))
    finally:
        os.chdir(before)


@pytest.mark.parametrize("file_bytes", [700, 6000])
def test_file_size_limit(launcher: Launch, project: Path, stage: str, file_bytes: int) -> None:
    process = launcher(stage)
    expect_no_room(process, project, file_bytes=file_bytes)
    assert process.run(project) == 0
    limited = output(project, stage)
    shutil.rmtree(project / ".state")
    assert process.run(project) == 0
    assert output(project, stage) == limited


def test_disk_full_from_any_write_on(launcher: Launch, project: Path, stage: str) -> None:
    process = launcher(stage)
    shutil.rmtree(cache_folder() / "shards", ignore_errors=True)  # what an earlier stage knew
    process.start(project)
    code, operations = process.finish()
    assert code == 0
    expected, writes = output(project, stage), operations["write"]
    # In the middle a shard or its record, as threads take turns; the last is that of the timings.
    named = (f"shards/{stage}/", "manifest.json", f"metrics/{stage}.json")
    for at, name in zip((writes // 2, writes - 2, writes - 1), named, strict=True):
        # What is known of shards would be written once only.
        for folder in (project / ".state", project / OUTS[stage], cache_folder() / "shards"):
            shutil.rmtree(folder, ignore_errors=True)
        process.metrics.unlink()
        expect_no_room(process, project, expected, kind="write", at=at, full=True)
        assert re.search(rf"No space left on device: \S*{name}", process.said)
        assert not process.metrics.exists()
        kept = (project / ".state" / "shards" / stage).glob("*.tar")
        assert {path.read_bytes() for path in kept} <= set(expected.values())
        assert process.run(project) == 0
        assert output(project, stage) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(KiB) -> a folder on a file system of that size, or of a new size."""
    folder = tmp_path / "disk"

    def resize(kilobytes: int) -> Path:
        options = f"size={kilobytes}k"
        if folder.exists():
            options = f"remount,{options}"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system needs root")
        return folder

    yield resize
    if folder.exists():
        subprocess.run(["umount", str(folder)], capture_output=True, check=False)


@pytest.mark.parametrize("free_kilobytes", [8, 28])
def test_full_file_system(
    launcher: Launch,
    project: Path,
    stage: str,
    small_disk: Callable[[int], Path],
    free_kilobytes: int,
) -> None:
    process = launcher(stage)
    assert process.run(project) == 0
    expected = output(project, stage)
    disk = small_disk(8192)
    for name in ("params.yaml", "weights", "data/filter", "data/decode"):
        source = project / name
        if source.is_dir() and Path(name) != OUTS[stage]:
            shutil.copytree(source, disk / name)
        elif source.is_file():
            shutil.copy(source, disk / name)
    used = sum(-(-path.stat().st_size // 4096) * 4 for path in disk.rglob("*") if path.is_file())
    small_disk(used + free_kilobytes)
    expect_no_room(process, disk)
    small_disk(8192)
    assert process.run(disk) == 0
    assert output(disk, stage) == expected


@pytest.mark.usefixtures("project")
def test_collect_names_the_file_that_does_not_fit(filtered: Path) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "from fvlm.core.stage import run; from pipeline import collect; run(collect.main)"
    )
    for path in paths.VIDEOS.parent.iterdir():
        path.unlink()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(filtered)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no room: ")
    assert str(paths.VIDEOS) in done.stderr
    assert not list(paths.VIDEOS.parent.iterdir())  # no half-written file
