"""Decoding 24 frames of a clip on one core: this project, ffmpeg, torchcodec, decord.

    python -m benchmarks.bench_decode [--rounds 5] [--rows h264_gop250_360p,...] [--folder clips]

The clips are 30 s of Big Buck Bunny, encoded anew with the ffmpeg command (kept in --folder when
given). Each way delivers the same 24 frames as squares of 256 px (decord: 16:9, it cannot crop), in
turns, with one thread, after a warm-up that compares the pictures: a way that delivers other frames
is left out (null), like one that is not installed or cannot read the file. The figures are
processor time, which other load on the machine hardly changes. torchcodec counts in its faster seek
mode. Of clips of 16 frames, 3 a second, one call for all of a video is held against a call for each
(`together_over_one_by_one`). Last line: one JSON object; a ratio above 1 means that this project is
faster.
"""

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fvlm.core.errors import VideoError
from fvlm.core.machine import core_count
from fvlm.corpus.demo import clip_names, demo_folder
from fvlm.video.decode import DecodedClip, Wanted, decode_clips, decode_video
from fvlm.video.probe import probe_video
from fvlm.video.worker import map_isolated

NUM_FRAMES, SIZE = 24, 256
SECONDS = 30
SAME_PICTURE = 10.0  # mean difference of grey levels that other scaling and rounding can make
Way = Callable[[], np.ndarray]
X264 = ["-c:v", "libx264", "-preset", "medium"]
ROWS: dict[str, tuple[str, int, list[str]]] = {  # name: container, height, encoder options
    "h264_gop250_360p": ("mp4", 360, [*X264, "-g", "250", "-sc_threshold", "0"]),
    "h264_gop250_720p": ("mp4", 720, [*X264, "-g", "250", "-sc_threshold", "0"]),
    "h264_gop250_mkv": ("mkv", 360, [*X264, "-g", "250", "-sc_threshold", "0"]),
    "h264_gop30": ("mp4", 360, [*X264, "-g", "30"]),
    "h264_no_b_frames": ("mp4", 360, [*X264, "-g", "250", "-bf", "0"]),
    "hevc": ("mp4", 360, ["-c:v", "libx265", "-preset", "fast", "-tag:v", "hvc1"]),
    "vp9": ("webm", 360, ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "6"]),
    "av1": ("mp4", 360, ["-c:v", "libsvtav1", "-preset", "10"]),
    "mpeg4": ("mp4", 360, ["-c:v", "mpeg4", "-q:v", "4", "-g", "250", "-bf", "2"]),
    "mpeg2": ("mpg", 360, ["-c:v", "mpeg2video", "-q:v", "4", "-bf", "2"]),
    "mjpeg": ("avi", 360, ["-c:v", "mjpeg", "-q:v", "4", "-pix_fmt", "yuvj420p"]),
}


def encode(row: str, folder: Path) -> Path:
    """The clip of a row; encoded once per folder."""
    container, height, options = ROWS[row]
    path = folder / f"{row}.{container}"
    if not path.exists():
        source = max((demo_folder() / name for name in clip_names()), key=_seconds)
        command = ["ffmpeg", "-v", "error", "-stream_loop", "-1", "-i", str(source)]
        command += ["-t", str(SECONDS), "-an", "-vf", f"scale=-2:{height}", *options, str(path)]
        subprocess.run(command, check=True, timeout=600)
    return path


def _seconds(path: Path) -> float:
    return probe_video(str(path)).duration_seconds


def with_ffmpeg(path: Path, indices: list[int]) -> Way:
    """Select the frames in a filter, so that only they are scaled and converted."""
    select = "+".join(f"eq(n\\,{index})" for index in indices)
    filters = f"select='{select}',crop=min(iw\\,ih):min(iw\\,ih),scale={SIZE}:{SIZE}:flags=area"
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-an", "-vf", filters]
    command += ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]

    def run() -> np.ndarray:
        done = subprocess.run(command, check=True, capture_output=True)
        return np.frombuffer(done.stdout, np.uint8).reshape(-1, SIZE, SIZE, 3)

    return run


def with_torchcodec(path: Path, indices: list[int], seek_mode: str) -> Way:
    decoders = importlib.import_module("torchcodec.decoders")
    transforms = importlib.import_module("torchcodec.transforms")
    height = probe_video(str(path)).height
    square = [transforms.CenterCrop((height, height)), transforms.Resize((SIZE, SIZE))]

    def run() -> np.ndarray:
        decoder = decoders.VideoDecoder(
            str(path), num_ffmpeg_threads=1, seek_mode=seek_mode, transforms=square
        )
        return np.asarray(decoder.get_frames_at(indices).data).transpose(0, 2, 3, 1)

    return run


def with_decord(path: Path, indices: list[int]) -> Way:
    decord = importlib.import_module("decord")

    def run() -> np.ndarray:
        reader = decord.VideoReader(str(path), width=SIZE * 16 // 9, height=SIZE, num_threads=1)
        frames: np.ndarray = reader.get_batch(indices).asnumpy()
        left = (frames.shape[2] - SIZE) // 2
        return frames[:, :, left : left + SIZE]

    return run


def ways(path: Path, indices: list[int]) -> dict[str, Way]:
    """Every way that is installed; each returns uint8 [T, 256, 256, 3]."""

    def ours() -> np.ndarray:
        clip = decode_video(str(path), num_frames=NUM_FRAMES, size=SIZE)
        return clip.frames.transpose(0, 2, 3, 1)

    found: dict[str, Way] = {"fvlm": ours, "ffmpeg": with_ffmpeg(path, indices)}
    if importlib.util.find_spec("torchcodec"):
        found["torchcodec"] = with_torchcodec(path, indices, "exact")
        found["torchcodec approximate"] = with_torchcodec(path, indices, "approximate")
    if importlib.util.find_spec("decord"):
        found["decord"] = with_decord(path, indices)
    return found


def processor_seconds() -> float:
    """Of this process and of the commands that it has run."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def time_row(path: Path, rounds: int) -> dict[str, float | None]:
    """Median milliseconds of each way, taking turns; None where a way gives other frames."""
    facts = probe_video(str(path))
    pts_seconds = decode_video(str(path), num_frames=NUM_FRAMES, size=8).pts_seconds
    candidates = ways(path, [round(seconds * facts.fps) for seconds in pts_seconds])
    expected = candidates["fvlm"]().astype(np.int16)
    seconds: dict[str, list[float]] = {}
    for name, run in candidates.items():
        try:
            error = np.abs(run() - expected).mean(axis=(1, 2, 3)).max()
        except Exception as fault:
            print(f"  {name} cannot read {path.name}: {str(fault).strip()[:60]!r}")
            continue
        if error < SAME_PICTURE:
            seconds[name] = []
        else:
            print(f"  {name} delivers other frames of {path.name}: mean difference {error:.1f}")
    for _ in range(rounds):
        for name, times in seconds.items():
            begin = processor_seconds()
            candidates[name]()
            times.append(processor_seconds() - begin)
    return {n: statistics.median(seconds[n]) * 1e3 if n in seconds else None for n in candidates}


def ratios(milliseconds: dict[str, float | None]) -> dict[str, float | None]:
    """How many times as long the others take; torchcodec in its faster mode."""
    ours = milliseconds["fvlm"]
    assert ours is not None
    result: dict[str, float | None] = {}
    for name in ("ffmpeg", "torchcodec", "decord"):
        times = [ms for way, ms in milliseconds.items() if way.startswith(name) and ms]
        result[f"ratio_{name}"] = round(min(times) / ours, 2) if times else None
    return result


def time_processes(path: Path, clips: int) -> dict[str, float]:
    """Clips per second with one worker and with one for each core; ratio 1 is linear."""
    sha256 = probe_sha256(path)
    request = {"path": str(path), "sha256": sha256, "num_frames": NUM_FRAMES, "size": SIZE}
    request["clips"] = [[0.0, None]]
    rates = {}
    cores = core_count()
    for workers in dict.fromkeys((1, cores)):
        results = map_isolated(
            "fvlm.video.decode:decode_request", [request] * clips, workers=workers
        )
        for _ in range(workers):
            next(results)  # start-up
        begin = time.perf_counter()
        rest = sum(1 for _ in results)
        rates[workers] = rest / (time.perf_counter() - begin)
    named = {f"clips_per_second_{workers}_workers": rate for workers, rate in rates.items()}
    named["linearity_processes"] = rates[cores] / rates[1] / cores
    return {name: round(value, 2) for name, value in named.items()}


def time_together(path: Path, rounds: int) -> float:
    """How many times as long a call for each clip takes as one for all clips of a video.

    The clips are 16 frames at 3 a second, one after the other, at 128 pixels.
    """
    seconds = probe_video(str(path)).duration_seconds
    starts = np.arange(int(seconds * 3 / 16)) * 16 / 3
    clips: list[tuple[float, float | None]] = [(start, start + 16 / 3) for start in starts.tolist()]

    def together() -> list[DecodedClip | VideoError]:
        return decode_clips(str(path), Wanted(clips, 16), size=128)

    def one_by_one() -> list[DecodedClip | VideoError]:
        return [decode_clips(str(path), Wanted([clip], 16), size=128)[0] for clip in clips]

    def pixels(found: list[DecodedClip | VideoError]) -> np.ndarray:
        return np.stack([clip.frames for clip in found if isinstance(clip, DecodedClip)])

    np.testing.assert_array_equal(pixels(together()), pixels(one_by_one()))
    ratios = []
    for _ in range(rounds):
        begin = processor_seconds()
        together()
        middle = processor_seconds()
        one_by_one()
        ratios.append((processor_seconds() - middle) / (middle - begin))
    return round(statistics.median(ratios), 2)


def probe_sha256(path: Path) -> str:
    [(_, outcome)] = map_isolated("fvlm.video.probe:probe_request", [{"path": str(path)}])
    if isinstance(outcome, Exception):
        raise outcome
    return str(outcome.values["sha256"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if shutil.which("ffmpeg") is None:
        raise SystemExit("the ffmpeg command is needed: it encodes the clips and is compared with")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        paths = {row: encode(row, folder) for row in arguments.rows.split(",")}
        processes = time_processes(next(iter(paths.values())), clips=24)
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cores)})
        rows: dict[str, Any] = {}
        heads = "".join(
            f" {head:>8}" for head in ("fvlm", "ffmpeg", "torchc.", "approx.", "decord")
        )
        print(f"{'milliseconds':20}{heads}")
        for row, path in paths.items():
            milliseconds = time_row(path, arguments.rounds)
            cells = "".join(f" {ms:8.0f}" if ms else "        -" for ms in milliseconds.values())
            rows[row] = ratios(milliseconds)
            print(f"{row:20}{cells}   {rows[row]}", flush=True)
        together = time_together(paths[next(iter(paths))], arguments.rounds)
        print(f"a call for each clip takes {together} times as long as one for all of the video's")
    summary: dict[str, Any] = {"rows": rows, **processes, "together_over_one_by_one": together}
    for name in ("ratio_ffmpeg", "ratio_torchcodec", "ratio_decord"):
        known = [row[name] for row in rows.values() if row[name] is not None]
        summary[name] = min(known) if known else None
    everything = [summary[name] for name in summary if name.startswith("ratio_")]
    summary["ratio_min"] = min(ratio for ratio in everything if ratio is not None)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
