"""Probing many files: the first run, and the run in which nothing has changed.

    python -m benchmarks.bench_probe [--files 10000]

Small files (a few KB of MPEG-4) show the cost per file, large ones (clips of the demo film) the
rate in bytes. A first run is compared with reading and hashing the same bytes in plain Python, a
rerun with a bare `os.stat` of every file; both ratios are of times, so 1 would be the limit itself.
The files are in the page cache: on a disk slower than `megabytes_per_second`, the disk is what a
first run waits for. `linearity_processes` is the rate with one worker a core over the rate with
one worker, divided by the cores: 1 is linear. Last line: one JSON object.
"""

import argparse
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np

from fvlm.core.errors import VideoError
from fvlm.core.machine import core_count
from fvlm.corpus.demo import clip_names, demo_folder
from fvlm.video.facts import FactRecord, probe_all
from fvlm.video.worker import map_isolated

KINDS = 16  # different small videos; the rest are copies, each a file of its own
ONE_WORKER_FILES = 1500
LARGE_FILES = 12
REPEATS = 5


def render(path: Path, seed: int) -> None:
    """One second of noise that drifts, 64x48."""
    background = np.random.default_rng(seed).integers(0, 255, (48, 80, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            picture = np.ascontiguousarray(background[:, number : number + 64])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def small_files(folder: Path, count: int) -> list[str]:
    for seed in range(KINDS):
        render(folder / f"{seed:06d}.mp4", seed)
    for number in range(KINDS, count):
        shutil.copy(folder / f"{number % KINDS:06d}.mp4", folder / f"{number:06d}.mp4")
    return [str(folder / f"{number:06d}.mp4") for number in range(count)]


def large_files(folder: Path) -> list[str]:
    """Copies of the demo's largest clip."""
    largest = max((demo_folder() / name for name in clip_names()), key=lambda p: p.stat().st_size)
    return [
        str(shutil.copy(largest, folder / f"large-{number}{largest.suffix}"))
        for number in range(LARGE_FILES)
    ]


def probe(paths: Sequence[str], record: Path) -> float:
    """Seconds of one run over all files, including the reading of the record."""
    begin = time.perf_counter()
    videos = [{"path": path} for path in paths]
    found = probe_all(videos, FactRecord(record))
    failed = [video for video, outcome in found if isinstance(outcome, VideoError)]
    seconds = time.perf_counter() - begin
    assert not failed, failed[:3]
    return seconds


def rate(paths: Sequence[str], workers: int) -> float:
    """Files per second once the workers have started."""
    requests = [{"path": path} for path in paths]
    results = map_isolated("fvlm.video.probe:probe_request", requests, workers=workers)
    for _ in range(workers):
        next(results)
    begin = time.perf_counter()
    rest = sum(1 for _ in results)
    return rest / (time.perf_counter() - begin)


def read_all(paths: Sequence[str]) -> float:
    """Seconds of the least work on the same bytes: read each file once and hash it."""
    begin = time.perf_counter()
    for path in paths:
        with open(path, "rb") as file:  # noqa: PTH123
            hashlib.file_digest(file, "sha256").hexdigest()
    return time.perf_counter() - begin


def best(measure: Callable[[], float]) -> float:
    return min(measure() for _ in range(REPEATS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    arguments = parser.parse_args()
    cores = core_count()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small, large = small_files(folder, arguments.files), large_files(folder)
        megabytes = sum(Path(path).stat().st_size for path in large) / 1e6
        one = rate(small[:ONE_WORKER_FILES], 1)
        first = probe(small, folder / "record.jsonl")
        plain = read_all(small)
        again = best(lambda: probe(small, folder / "record.jsonl"))
        stats = best(lambda: stat_all(small))
        bytes_rate = megabytes / LARGE_FILES * rate(large, cores)
        plain_bytes_rate = megabytes / best(lambda: read_all(large))
    files = arguments.files
    figures = {
        "files": files,
        "files_per_second": round(files / first, 1),
        "files_per_second_1_worker": round(one, 1),
        "linearity_processes": round(files / first / one / cores, 2),
        "ratio_plain_reading": round(first / plain, 1),
        "megabytes_per_second": round(bytes_rate, 1),
        "megabytes_per_second_plain": round(plain_bytes_rate, 1),
        "rerun_microseconds_per_file": round(again / files * 1e6, 1),
        "stat_microseconds_per_file": round(stats / files * 1e6, 1),
        "ratio_stat": round(again / stats, 1),
    }
    for name, value in figures.items():
        print(f"{name:32} {value:>10}")
    print(json.dumps(figures))


def stat_all(paths: Sequence[str]) -> float:
    begin = time.perf_counter()
    for path in paths:
        os.stat(path)  # noqa: PTH116
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
