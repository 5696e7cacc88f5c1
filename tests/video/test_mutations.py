"""Damaged files: whatever happens to the bytes, every file ends as data, never as a crash.

The suite runs a sample; `make test-slow` runs the whole campaign and prints the share of files
whose stored frames are wrong although nothing was flagged.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvlm.core.errors import VideoError
from fvlm.core.seeding import generator
from fvlm.video.reasons import Reason
from fvlm.video.worker import Outcome, map_isolated

SOURCES = (
    "h264_b.mp4",
    "h264_pyramid.mkv",
    "h264_fragmented.mp4",
    "h264.ts",
    "hevc_open_gop.mp4",
    "vp8.webm",
    "vp9.webm",
    "av1.mp4",
    "mpeg4.avi",
    "mpeg2_b.mpg",
    "mjpeg.avi",
)
CAMPAIGN_FILES = int(os.environ.get("FVLM_MUTATIONS", "10000"))
BATCH_FILES = 200  # on disk at a time
NUM_FRAMES, SIZE = 16, 64
PROCESSOR_SECONDS = 25.0
MEMORY_BYTES = 2_500_000_000
UNFLAGGED_LIMIT = 0.13  # of all damaged files; a plain decoding loop passes 56% of them wrongly

Random = np.random.Generator
Mutator = Callable[[bytearray, Random], bytearray]
WHOLE = {"clips": [[0.0, None]], "num_frames": NUM_FRAMES, "size": SIZE}


def flip_bits(data: bytearray, random: Random) -> bytearray:
    for place in random.integers(0, len(data), random.integers(1, 17)):
        data[place] ^= 1 << int(random.integers(8))
    return data


def overwrite_bytes(data: bytearray, random: Random) -> bytearray:
    for place in random.integers(0, len(data), random.integers(1, 65)):
        data[place] = int(random.integers(256))
    return data


def fill_with_noise(data: bytearray, random: Random) -> bytearray:
    start, length = _run(data, random)
    data[start : start + length] = random.bytes(length)
    return data


def fill_with_zeros(data: bytearray, random: Random) -> bytearray:
    start, length = _run(data, random)
    data[start : start + length] = bytes(length)
    return data


def cut_out(data: bytearray, random: Random) -> bytearray:
    start, length = _run(data, random)
    del data[start : start + length]
    return data


def insert_noise(data: bytearray, random: Random) -> bytearray:
    start, length = _run(data, random)
    data[start:start] = random.bytes(length)
    return data


def swap_blocks(data: bytearray, random: Random) -> bytearray:
    length = int(random.integers(16, max(len(data) // 8, 17)))
    first = int(random.integers(0, len(data) - 2 * length))
    second = int(random.integers(first + length, len(data) - length + 1))
    a, b = slice(first, first + length), slice(second, second + length)
    data[a], data[b] = data[b], data[a]
    return data


def truncate(data: bytearray, random: Random) -> bytearray:
    return data[: int(random.integers(1, len(data)))]


def damage_header(data: bytearray, random: Random) -> bytearray:
    """Where a container keeps its tables: the first or the last two kilobytes."""
    start = 0 if random.random() < 0.5 else max(len(data) - 2048, 0)
    for place in start + random.integers(0, min(2048, len(data)), random.integers(1, 9)):
        data[place] = int(random.integers(256))
    return data


MUTATORS: tuple[Mutator, ...] = (
    flip_bits,
    overwrite_bytes,
    fill_with_noise,
    fill_with_zeros,
    cut_out,
    insert_noise,
    swap_blocks,
    truncate,
    damage_header,
)


def _run(data: bytearray, random: Random) -> tuple[int, int]:
    """Start and length of a stretch of at most a twentieth of the file."""
    length = int(random.integers(1, max(len(data) // 20, 2)))
    return int(random.integers(0, len(data) - length)), length


def mutants(videos: dict[str, Path], folder: Path, numbers: range) -> Iterator[dict[str, Any]]:
    """Write file after file; each depends on its number only."""
    for number in numbers:
        source = SOURCES[number % len(SOURCES)]
        mutate = MUTATORS[number // len(SOURCES) % len(MUTATORS)]
        data = mutate(bytearray(videos[source].read_bytes()), generator(0, "mutation", number))
        path = folder / f"{number}{Path(source).suffix}"
        path.write_bytes(data)
        yield {"path": str(path), "source": source, "mutator": mutate.__name__}


def run(function: str, requests: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> Any:
    return map_isolated(
        function, requests, processor_seconds=PROCESSOR_SECONDS, memory_bytes=MEMORY_BYTES
    )


def decode_batch(requests: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Probe and decode as the pipeline does; yields every request exactly once."""
    accepted = []
    for request, outcome in run("fvlm.video.probe:probe_request", requests):
        if isinstance(outcome, VideoError):
            yield request, outcome
        else:
            sha256 = outcome.values["sha256"]
            accepted.append(
                {
                    **request,
                    "sha256": sha256,
                    "num_frames": NUM_FRAMES,
                    "size": SIZE,
                    "clips": [[0.0, None]],
                }
            )
    yield from run("fvlm.video.decode:decode_request", accepted)


def clean_frames(videos: dict[str, Path]) -> dict[str, np.ndarray]:
    """The frames of the undamaged files; none of them may be refused."""
    requests = iter([{"path": str(videos[source]), "source": source} for source in SOURCES])
    frames = {}
    for request, outcome in decode_batch(requests):
        assert isinstance(outcome, Outcome), f"clean {request['source']} refused: {outcome}"
        frames[request["source"]] = outcome.arrays["frames"][0]
    return frames


def campaign(videos: dict[str, Path], folder: Path, files: int) -> Counter[tuple[str, str, str]]:
    """Counts by (source, mutator, result); the result is right, wrong, or a reason."""
    expected = clean_frames(videos)
    counts: Counter[tuple[str, str, str]] = Counter()
    for start in range(0, files, BATCH_FILES):
        numbers = range(start, min(start + BATCH_FILES, files))
        seen = set()
        for request, outcome in decode_batch(mutants(videos, folder, numbers)):
            assert request["path"] not in seen
            seen.add(request["path"])
            if isinstance(outcome, VideoError):
                result = str(Reason(outcome.reason))
            else:
                frames = outcome.arrays["frames"][0]
                assert frames.shape == (NUM_FRAMES, 3, SIZE, SIZE)
                same = np.array_equal(frames, expected[request["source"]])
                result = "right" if same else "wrong"
            counts[request["source"], request["mutator"], result] += 1
            Path(request["path"]).unlink()
        assert len(seen) == len(numbers), "a file was lost"
    return counts


def report(counts: Counter[tuple[str, str, str]]) -> float:
    """Print the counts; return the share of files that are wrong and unflagged."""
    total = counts.total()
    for position, title in enumerate(("source", "mutator", "result")):
        names = sorted({key[position] for key in counts})
        print(f"\n{'':24} {'files':>6} {'right':>6} {'wrong':>6} {'flagged':>8}   by {title}")
        for name in names:
            rows = {key: n for key, n in counts.items() if key[position] == name}
            files = sum(rows.values())
            right = sum(n for key, n in rows.items() if key[2] == "right")
            wrong = sum(n for key, n in rows.items() if key[2] == "wrong")
            print(f"{name:24} {files:6} {right:6} {wrong:6} {files - right - wrong:8}")
    wrong = sum(n for key, n in counts.items() if key[2] == "wrong")
    print(f"\n{total} damaged files, wrong and unflagged: {wrong / total:.1%}")
    return wrong / total


def test_sample_of_damaged_files_is_accounted_for(videos: dict[str, Path], tmp_path: Path) -> None:
    pairs = set(product(SOURCES, [mutate.__name__ for mutate in MUTATORS]))
    counts = campaign(videos, tmp_path, len(pairs))
    assert {(source, mutator) for source, mutator, _ in counts} == pairs
    assert report(counts) <= 1.5 * UNFLAGGED_LIMIT  # a small sample


@pytest.mark.slow
def test_campaign(videos: dict[str, Path], tmp_path: Path) -> None:
    assert report(campaign(videos, tmp_path, CAMPAIGN_FILES)) <= UNFLAGGED_LIMIT
