"""Same samples, same bytes; keys keep ids apart; the files are plain WebDataset tars."""

import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fvlm.core.errors import ShardError
from fvlm.core.io import KEY, sample_key
from fvlm.shards.write import Sample, write_shard

# Names as a file system gives them (bytes, not always UTF-8), and any 16-bit units.
FILE_NAMES = st.binary(max_size=40).map(lambda name: name.decode(errors="surrogateescape"))
ANY_UNITS = st.binary(max_size=20).map(
    lambda units: units[: len(units) // 2 * 2].decode("utf-16-le", errors="surrogatepass")
)
TWINS = ["a/b.mp4", "a-b.mp4", "A-B.mp4", "é", "e\u0301", "\udcff", "\udcfe", "", "video"]
IDS_BY_KEY: dict[str, str] = {}


def samples() -> Iterator[Sample]:
    rng = np.random.default_rng(0)
    for number in range(5):
        frames = rng.integers(0, 256, (4, 3, 8, 8), np.uint8)
        tokens = rng.standard_normal((4, 7, 5)).astype(np.float16)
        yield (
            sample_key(f"clip {number}"),
            {
                "frames.npy": frames,
                "tokens.npy": tokens,
                "json": {"caption": "é\udcff", "n": number},
            },
        )


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.lists(st.one_of(FILE_NAMES, ANY_UNITS), min_size=20, max_size=20))
@example(TWINS)
def test_keys_of_10000_ids_are_plain_and_distinct(video_ids: list[str]) -> None:
    for video_id in video_ids:
        key = sample_key(video_id)
        assert KEY.fullmatch(key)
        assert IDS_BY_KEY.setdefault(key, video_id) == video_id


def test_key_is_readable() -> None:
    assert sample_key("Street/Zürich 01.mp4").startswith("street-zurich-01-mp4-")
    assert len(sample_key("x" * 1000)) <= 80


def test_facts_describe_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    facts = write_shard(path, samples())
    data = path.read_bytes()
    assert facts.bytes == len(data)
    assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert facts.md5 == hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert facts.samples == 5
    assert len(facts.sample_crc32) == 40


def test_plain_tar_readers_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, samples())
    with tarfile.open(path) as tar:
        assert all(member.isreg() for member in tar)
        for key, fields in samples():
            for name in ("frames.npy", "tokens.npy"):
                stored = tar.extractfile(f"{key}.{name}")
                assert stored is not None
                array = np.load(io.BytesIO(stored.read()), allow_pickle=False)
                np.testing.assert_array_equal(array, fields[name], strict=True)


def test_headers_are_those_of_tarfile(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, [("k" * length, {"json": "x" * length**2}) for length in range(1, 81)])
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        for member in tar:
            header = member.tobuf(format=tarfile.USTAR_FORMAT)
            assert data[member.offset : member.offset_data] == header


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset does not close its file
def test_webdataset_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, samples())
    dataset = webdataset.WebDataset(str(path), shardshuffle=False).decode()
    rows = list(dataset)
    for row, (key, fields) in zip(rows, samples(), strict=True):
        assert row["__key__"] == key
        assert row["json"] == fields["json"]
        np.testing.assert_array_equal(row["frames.npy"], fields["frames.npy"])


SCRIPT = """
import os, sys, time
os.umask(int(sys.argv[2], 8)); time.tzset()
import numpy as np
from pathlib import Path
from fvlm.shards.write import write_shard
fields = [("a.npy", np.arange(6).reshape(2, 3)), ("json", {"b": 1.5, "a": "ü"})]
value = dict(sorted(fields[1][1].items(), reverse=sys.argv[2] == "077"))
print(write_shard(Path(sys.argv[1]), [("k", {"a.npy": fields[0][1], "json": value})]).sha256)
"""


def test_bytes_ignore_umask_timezone_hash_seed_and_dict_order(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    digests = set()
    for number, (umask, zone) in enumerate(
        [("022", "UTC"), ("077", "Asia/Tokyo"), ("000", "EST5")]
    ):
        variables = environment | {"TZ": zone, "PYTHONHASHSEED": str(number)}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / f"{number}.tar"), umask]
        answer = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        digests.add(answer.stdout)
    assert len(digests) == 1


def test_layout_of_arrays_in_memory_does_not_matter(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    variants = [array, np.asfortranarray(array), array.astype(">i4"), array[:, ::-1][:, ::-1]]
    digests = {
        write_shard(tmp_path / "a.tar", [("k", {"a.npy": v, "json": {}})]).sha256 for v in variants
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([("a", {"json": {}}), ("a", {"json": {}})], "repeated"),
        ([("a.b", {"json": {}})], "invalid"),
        ([("A", {"json": {}})], "invalid"),
        ([("a/b", {"json": {}})], "invalid"),
        ([("a", {"x.pickle": b""})], "expected NAME.npy or json"),
        ([("a", {"x.npy": np.array([object()])})], "dtype"),
        ([], "at least one"),
    ],
)
def test_bad_samples_are_refused_and_leave_no_file(
    bad: list[Sample], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ShardError, match=message):
        write_shard(tmp_path / "a.tar", bad)
    assert not list(tmp_path.iterdir())
