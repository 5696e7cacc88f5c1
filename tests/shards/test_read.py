"""The reader gives what was written, reads only what was asked for, and notices any change."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fvlm.core.errors import FvlmError, ShardError
from fvlm.core.io import sha256_file
from fvlm.shards.build import ShardPlan, build_shards, write_record
from fvlm.shards.manifest import Manifest
from fvlm.shards.plan import Member
from fvlm.shards.read import ShardReader, open_shards, verify_shards

OUT = Path("data/toy")


def plain_samples(split: str) -> list[tuple[str, dict[str, Any]]]:
    """The samples of a split by tarfile and numpy alone."""
    samples: dict[str, dict[str, Any]] = {}
    for path in sorted(OUT.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                value = json.loads(data) if name == "json" else np.load(io.BytesIO(data))
                samples.setdefault(key, {})[name] = value
    return list(samples.items())


@pytest.fixture
def reader(project: Any) -> Any:
    project.run()
    with open_shards(OUT, split="train") as reader:
        yield reader


def test_agrees_with_tarfile_and_numpy(reader: ShardReader) -> None:
    samples = plain_samples("train")
    assert reader.keys == [key for key, _ in samples]
    batch = reader.read(range(len(reader)), ["frames", "latents"])
    for number, (_, fields) in enumerate(samples):
        assert reader.metadata(number) == fields["json"]
        np.testing.assert_array_equal(batch["frames"][number], fields["frames.npy"], strict=True)
        np.testing.assert_array_equal(batch["latents"][number], fields["latents.npy"], strict=True)


FRAMES = st.lists(st.integers(0, 5), max_size=8)
BATCH = st.lists(st.integers(0, 10), max_size=6)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(samples=BATCH, frames=FRAMES)
def test_any_samples_and_frames_in_any_order(
    reader: ShardReader, samples: list[int], frames: list[int]
) -> None:
    everything = reader.read(range(len(reader)), ["frames"])["frames"]
    got = reader.read(samples, ["frames"], frames=frames)["frames"]
    numbers = np.asarray(samples, int)[:, None], np.asarray(frames, int)[None]
    np.testing.assert_array_equal(got, everything[numbers], strict=True)


def test_frames_of_each_sample_may_differ(reader: ShardReader) -> None:
    everything = reader.read([0, 1], ["latents"])["latents"]
    got = reader.read([0, 1], ["latents"], frames=[[0, 1, 5], [3, 2, 4]])["latents"]
    np.testing.assert_array_equal(got[0], everything[0][[0, 1, 5]])
    np.testing.assert_array_equal(got[1], everything[1][[3, 2, 4]])


def test_reads_only_the_frames_asked_for(
    reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    preadv = os.preadv

    def counted(descriptor: int, buffers: Any, offset: int) -> int:
        sizes.append(len(buffers[0]))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    reader.read([3], ["frames"], frames=[1, 2, 5])
    assert sorted(sizes) == [3 * 8 * 8, 2 * 3 * 8 * 8]  # neighbours in one read


def test_reads_into_given_arrays(reader: ShardReader) -> None:
    out = {"frames": np.zeros((2, 6, 3, 8, 8), np.uint8)}
    got = reader.read([1, 4], ["frames"], out=out)
    assert got["frames"] is out["frames"]
    np.testing.assert_array_equal(got["frames"], reader.read([1, 4], ["frames"])["frames"])
    for wrong in (np.zeros((2, 6, 3, 8, 8), np.int8), np.zeros((3, 6, 3, 8, 8), np.uint8)):
        with pytest.raises(ValueError, match=r"out\['frames'\]: expected C-contiguous uint8"):
            reader.read([1, 4], ["frames"], out={"frames": wrong})


def test_numbers_out_of_range_are_refused(reader: ShardReader) -> None:
    with pytest.raises(IndexError, match="sample numbers must be 0 to 10"):
        reader.read([0, 11], ["frames"])
    with pytest.raises(IndexError, match="frame numbers must be 0 to 5"):
        reader.read([0], ["frames"], frames=[-1])


def test_describes_itself(reader: ShardReader) -> None:
    assert len(reader) == 11
    assert "11 samples" in repr(reader)
    assert "latents <f2[6, 3, 2, 2]" in repr(reader)


def test_processes_that_divide_a_folder_read_each_shard_once(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.run()
    monkeypatch.setenv("FVLM_CACHE", str(project.folder / "cache"))  # nothing is known there
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr("fvlm.shards.verify.sha256_file", count)
    monkeypatch.setattr("fvlm.shards.verify.RACY_NS", 0)
    for part in range(3):
        verify_shards(Path("data/toy"), part=part, parts=3)
    for split in ("train", "val"):
        open_shards(Path("data/toy"), split=split).close()
    assert sorted(hashed) == [path.name for path in sorted(Path("data/toy").glob("*.tar"))]


def small_shard() -> Path:
    """One shard with two tiny samples, remembered as verified by nobody."""
    samples = [
        (key, {"a.npy": np.arange(6, dtype=np.uint8).reshape(2, 3) + n, "json": {"n": n}})
        for n, key in enumerate(["first", "second"])
    ]
    plan = ShardPlan.of("train", [Member("x", "x")], {})
    build_shards(
        plans=[plan],
        make=lambda _, path: write_record(path, samples, []),
        out=Path("data/small"),
        manifest=Manifest(stage="small", made_by="", recipe={}),
    )
    return Path("data/small/train-000000.tar")


def read_all() -> None:
    with open_shards(Path("data/small"), split="train", threads=1) as reader:
        reader.read(range(len(reader)), ["a"])


STEPS = [13, pytest.param(1, marks=pytest.mark.slow)]  # bytes; a sample, and every place


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("step", STEPS)
def test_every_truncation_is_noticed_and_named(step: int) -> None:
    path = small_shard()
    read_all()
    data = path.read_bytes()
    for size in range(0, len(data), step):
        path.unlink()  # never write through a hard link
        path.write_bytes(data[:size])
        with pytest.raises(
            ShardError, match=r"train-000000\.tar is damaged: .* got \d+, "
        ) as caught:
            read_all()
        where = str(caught.value)
        if 512 < size < 2048:
            assert "sample first;" in where
        if 2560 < size < 4096:
            assert "sample second;" in where
        assert "dvc repro" in where


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("step", STEPS)
def test_every_flipped_byte_is_noticed_and_its_sample_named(step: int) -> None:
    path = small_shard()
    data = path.read_bytes()
    for position in range(0, len(data), step):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.unlink()
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=r"train-000000\.tar is damaged: expected sha256") as c:
            read_all()
        if 512 <= position < 1024:
            assert "in sample first" in str(c.value)
        if 2560 <= position < 3072:
            assert "in sample second" in str(c.value)


@pytest.mark.usefixtures("project", "cache")
def test_content_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_shard()
    os.utime(path, ns=(0, 1_000_000_000))  # old enough to be remembered
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return str(json.loads(Path("data/small/manifest.json").read_text())["shards"][0]["sha256"])

    monkeypatch.setattr("fvlm.shards.verify.sha256_file", counted)
    read_all()
    read_all()
    assert len(hashed) == 1
    path.touch()
    read_all()
    assert len(hashed) == 2


@pytest.mark.usefixtures("project")
def test_a_file_changed_just_now_is_not_remembered(cache: Path) -> None:
    path = small_shard()
    (note,) = cache.glob("shards/verified/*/*")  # of its writer, who knew what it wrote
    note.unlink()
    read_all()
    assert not list(cache.glob("shards/verified/*/*"))
    os.utime(path, ns=(0, 1_000_000_000))
    read_all()
    assert len(list(cache.glob("shards/verified/*/*"))) == 1


def files_but(folder: Path) -> set[Path]:
    return {path for path in Path.cwd().rglob("*") if not path.is_relative_to(folder)}


@pytest.mark.usefixtures("project")
def test_checkouts_share_what_is_known_of_a_file(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hard links, that is: a copy is another file, and both are remembered side by side."""
    path = small_shard()
    os.utime(path, ns=(0, 1_000_000_000))
    folders = [Path("data/small").resolve()]
    for name, place in (("linked", os.link), ("copied", shutil.copy2)):
        folder = tmp_path / name / "data" / "small"
        folder.mkdir(parents=True)
        for file in Path("data/small").iterdir():
            place(file, folder / file.name)
        folders.append(folder)
    hashed = list[Path]()

    def counted(path: Path) -> str:
        hashed.append(path)
        return sha256_file(path)

    monkeypatch.setattr("fvlm.shards.verify.sha256_file", counted)
    for _ in range(2):
        for folder in folders:
            monkeypatch.chdir(folder.parents[1])
            before = files_but(cache)
            read_all()
            assert files_but(cache) == before  # who reads writes nothing there
    assert len(hashed) == 2
    assert len(list(cache.glob("shards/verified/*/*"))) == 2


@pytest.mark.usefixtures("project")
def test_a_shard_that_changes_in_use_is_noticed() -> None:
    path = small_shard()
    with open_shards(Path("data/small"), split="train") as reader:
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(ShardError, match="vanished while it was in use"):
            reader.read([0], ["a"])
        path.write_bytes(data[:-1])
        with pytest.raises(ShardError, match="changed while it was in use"):
            reader.metadata(0)


def test_missing_files_say_what_to_do(project: Any) -> None:
    with pytest.raises(FvlmError, match=r"manifest.json not found; run `dvc repro`"):
        open_shards(OUT, split="train")
    project.run()
    with pytest.raises(ShardError, match=r"no test shards, only \['train', 'val'\]"):
        open_shards(OUT, split="test")
    (OUT / "val-000000.tar").unlink()
    with pytest.raises(ShardError, match=r"val-000000.tar is missing; `dvc checkout` restores it"):
        open_shards(OUT, split="val")
    (OUT / "manifest.json").unlink()
    (OUT / "manifest.json").write_text('{"shards": [{"name": "x"}]}')
    with pytest.raises(ShardError, match=r"is damaged or of another version; run `dvc repro"):
        open_shards(OUT, split="train")


def test_works_without_a_writable_cache(
    project: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.run()
    for path in OUT.glob("*.tar"):
        os.utime(path, ns=(0, 1_000_000_000))
    shutil.rmtree(cache, ignore_errors=True)
    cache.touch()  # a file: nothing can be remembered
    monkeypatch.setattr("fvlm.shards.verify._untold", Lock())
    for split in ("train", "val", "val"):
        with open_shards(OUT, split=split) as reader:
            assert len(reader) > 0
    said = [line for line in capsys.readouterr().err.splitlines() if "FVLM_CACHE" in line]
    assert len(said) == 1
    assert said[0].startswith("shards are verified anew each time: nothing can be remembered (")
