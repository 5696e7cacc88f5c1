"""How processor time and memory grow from 10,000 to a million videos, with the stages' own code.

    python -m benchmarks.bench_scale [--sizes 10000 100000 1000000] [--folder scratch]
        [--until evaluate]
    python -m benchmarks.bench_scale --writing

For each size a project of its own: a list of so many videos (hard links of small files), DVC, and
the stages from collect to evaluate as `dvc repro` starts them; facts of nine videos in ten are
known from before. Only probing, decoding, encoding and
the passes of the evaluation are replaced by something that takes no time: 3 frames of 8 x 8 pixels
a clip, 64 clips a shard, one clip in ten held out. Everything else is real: listing, worker
processes, shards, hashes, index, reading, statistics, DVC's cache. Four cases:

    first     nothing is known
    known     every stage is forced to run, and hands back what it made (evaluate has nothing kept)
    no-op     `dvc repro` with nothing to do: collect lists, all others are skipped
    added     one more video

Figures are seconds of processor time, of a stage with its worker processes; `dvc` is what the
command took besides. Memory is the stage's own peak (resident) plus that of its workers at the
fullest moment. An exponent is log10 of processor time at a million videos over that at a tenth of
it: 1 is linear. All cases of 100,000 videos take 6 minutes of processor time, those of a million
45, and 12 GB in --folder. Each case is printed as soon as it has ended.

With --writing instead: the most clips/s that decode can write, with one and with two worker
processes that hand over frames of the usual size (16 of 128 pixels) without decoding; medians.

Last line: one JSON object; exponents are the largest of the cases, null where a size is missing.
"""

import argparse
import hashlib
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SIZES = (10_000, 100_000, 1_000_000)
STAGES = ("collect", "filter", "decode", "encode", "train", "evaluate")
CASES = ("first", "known", "added")
FRAMES, PIXELS = 3, 8
LINKS = 50_000  # of one file: file systems allow 65,000
IN_FOLDER = 1000  # videos of one folder
RECORD = "FVLM_BENCH_SCALE"  # environment: the file that stages add their figures to
SAMPLE_SECONDS = 0.25
ROUNDS, SHARDS, CLIPS = 5, 40, 8  # of --writing: clips of a shard; a worker's life is 500 clips
PARAMS: dict[str, dict[str, Any]] = {
    "collect": {"source": "videos.csv"},
    "filter": {"min_seconds": 1.0, "max_seconds": 60.0, "val_fraction": 0.1, "max_held_out": 0},
    "decode": {
        "num_frames": FRAMES,
        "frame_size": PIXELS,
        "frames_per_second": 0.0,
        "clips_per_video": 1,
        "clips_per_shard": 64,
    },
    "encode": {
        "dino": "weights/dino",
        "vae": "weights/vae",
        "dino_layers": 0,
        "layer": 2,
        "batch_frames": 48,
    },
    "model": {"llm": "untrained:32x1", "llm_layers": 0, "query_layers": 1, "head_channels": 8},
    "train": {
        "num_frames": FRAMES,
        "batch_size": 4,
        "max_samples": 8,
        "warmup_samples": 4,
        "checkpoint_samples": 8,
        "validate_samples": 4,
    },
    "evaluate": {"num_frames": FRAMES, "batch_size": 512},
}


# In the stages' own processes: what takes the place of decoders, encoders and passes.


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Facts of a video as `probe_request` gives them, without opening it."""
    return {
        "duration_seconds": 30.0 + (hash(request["path"]) % 100) / 10,
        "fps": 29.97,
        "frames": 900,
        "width": 1280,
        "height": 720,
        "codec": "h264",
        "container": "mp4",
        "rotation": 0,
        "video_stream": 1,
        "video_streams": 1,
        "sha256": hashlib.sha256(request["path"].encode()).hexdigest(),
    }


def decode(request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Frames and facts of a clip as `decode_request` gives them, without opening it."""
    noise = hashlib.shake_256(request["path"].encode()).digest(FRAMES * 3 * PIXELS**2)
    frames = np.frombuffer(noise, np.uint8).reshape(FRAMES, 3, PIXELS, PIXELS)
    footage = hashlib.shake_256(noise).hexdigest(8 * 3 * 16)
    facts = {"pts_seconds": [0.0, 10.0, 20.0], "footage": footage}
    return {"clips": [facts]}, {"frames": frames[None]}


def hand_over(request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Frames of the size that is asked for, for --writing."""
    shape = (1, request["num_frames"], 3, request["size"], request["size"])
    return {"clips": [{"pts_seconds": [], "footage": ""}]}, {"frames": np.zeros(shape, np.uint8)}


def encode(_: object, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and latents of clips as `FrameEncoder.encode` gives them."""
    values = clips.reshape(*clips.shape[:2], -1).astype(np.float16) / 255
    return values[..., :80].reshape(*clips.shape[:2], 5, 16), values[..., 80:84].reshape(
        *clips.shape[:2], 4, 1, 1
    )


def replace_passes() -> None:
    """Losses and queries of a batch that are noise around the size of its latents."""
    import torch

    from fvlm.evaluation import losses
    from fvlm.statistics.arms import ARMS, BASELINES

    def noise(batch: Any, *_: Any, **__: Any) -> Any:
        return 1 + torch.rand(batch.latents.shape[:2])

    def arm_losses(_: object, batch: Any, **__: object) -> Any:
        arms = [arm for arm in ARMS if arm not in (*BASELINES, "shuffled")]
        shape = batch.latents.shape[:2]
        return {arm: noise(batch) for arm in arms}, torch.zeros(*shape, 16)

    losses.arm_losses = arm_losses  # type: ignore[assignment]
    losses.losses_with_queries = lambda _, batch, __: noise(batch)  # type: ignore[assignment]


def run_stage(name: str) -> None:
    """Run a stage of the project in the working directory, and add its figures to the record."""
    from importlib import import_module

    peak = _PeakMemory()
    stage = import_module(f"pipeline.{name}")
    if name == "filter":
        import_module("fvlm.video.facts").PROBE = "benchmarks.bench_scale:probe"  # type: ignore[attr-defined]
    if name == "decode":
        import_module("fvlm.video.shards").decode_request = "benchmarks.bench_scale:decode"  # type: ignore[attr-defined]
    if name == "encode":
        import_module("fvlm.encoders.frames").FrameEncoder.encode = encode
    if name == "evaluate":
        replace_passes()
    begun = time.monotonic()
    stage.main()
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    figures = {
        "stage": name,
        "processor": sum(part.ru_utime + part.ru_stime for part in usage),
        "wall": time.monotonic() - begun,
        "gib": peak.stop(),
    }
    with Path(os.environ[RECORD]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(figures) + "\n")


class _PeakMemory:
    """Largest resident memory of this process, and of its children at their fullest moment."""

    def __init__(self) -> None:
        self._children, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        import psutil  # type: ignore[import-untyped]

        this = psutil.Process()
        own = this.cmdline()
        while not self._ended.wait(SAMPLE_SECONDS):
            total = 0
            for child in this.children(recursive=True):
                with suppress(psutil.Error):
                    # One that has not yet become another program has this one's memory.
                    total += child.memory_info().rss if child.cmdline() != own else 0
            self._children = max(self._children, total)

    def stop(self) -> float:
        self._ended.set()
        self._thread.join()
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        return own / 2**20 + self._children / 2**30


# The benchmark: projects, commands, figures.


@dataclass
class Case:
    """What one `dvc repro` took: by stage, and DVC itself; seconds of processor time."""

    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    dvc: float = 0.0
    wall: float = 0.0
    new_bytes: int = 0

    @property
    def own(self) -> float:
        return sum(stage["processor"] for stage in self.stages.values())


class Project:
    """A DVC project with a list of so many videos."""

    def __init__(self, folder: Path, videos: int, until: str) -> None:
        self.folder, self._videos, self._until = folder, 0, until
        folder.mkdir()
        for name in ("fvlm", "pipeline"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        stages = (
            (ROOT / "dvc.yaml")
            .read_text()
            .replace("-m pipeline.", "-m benchmarks.bench_scale --stage ")
        )
        (folder / "dvc.yaml").write_text(stages)
        shutil.copy(ROOT / ".dvcignore", folder)
        self._set_params()
        self._save_models()
        self._run("git", "init", "-q")
        self._run("dvc", "init", "-q")
        self._run("dvc", "config", "cache.type", "hardlink,reflink,copy")
        self._run("dvc", "config", "core.analytics", "false")
        (folder / "videos.csv").write_text("path,caption\n")
        self.add(videos)
        self._write_facts()

    def add(self, count: int) -> None:
        """List so many more videos."""
        with (self.folder / "videos.csv").open("a", encoding="utf-8") as listing:
            for number in range(self._videos, self._videos + count):
                # Names in an order of their own, as the videos of a real corpus have.
                digest = hashlib.sha256(str(number).encode()).hexdigest()[:24]
                name = f"videos/{number // IN_FOLDER:04d}/{digest}.mp4"
                path = self.folder / name
                if number % IN_FOLDER == 0:
                    path.parent.mkdir(parents=True)
                if number % LINKS == 0 or number == self._videos:
                    self._original = self.folder / f"original-{number}"
                    self._original.write_bytes(b"no video")
                path.hardlink_to(self._original)
                listing.write(f"{name},A person of number {number} does something in a room.\n")
        self._videos += count

    def _write_facts(self) -> None:
        """Facts of all but every tenth video, as an interrupted run of filter leaves them."""
        name = "import fvlm.video.facts as f; f.PROBE = 'benchmarks.bench_scale:probe'; "
        version = self._run(sys.executable, "-c", f"{name}print(f.probe_version())").strip()
        record = self.folder / ".state/probe" / f"{version}.jsonl"
        record.parent.mkdir(parents=True)
        known = (path for n, path in enumerate(self.folder.glob("videos/*/*")) if n % 10)
        with record.open("w", encoding="utf-8") as file:
            for path in known:
                at = path.stat()
                key = [at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino]
                entry = {"path": str(path), "key": key, "reason": "", "message": ""}
                file.write(json.dumps(entry | {"facts": probe(entry)}) + "\n")

    def repro(self, *options: str) -> Case:
        """`dvc repro` up to the last stage that is measured."""
        record, case = self.folder / ".bench.jsonl", Case()
        record.write_text("")
        before, begun, cached = _children_seconds(), time.monotonic(), self._cached()
        self._run("dvc", "repro", "-q", *options, self._until, **{RECORD: str(record)})
        for line in record.read_text().splitlines():
            figures = json.loads(line)
            case.stages[figures.pop("stage")] = figures
        case.wall = time.monotonic() - begun
        case.dvc = _children_seconds() - before - case.own
        shards = {path.stat().st_ino for path in (self.folder / "data").glob("*/*.tar")}
        new = self._cached().items() - cached.items()
        case.new_bytes = sum(size for (_, inode), size in new if inode not in shards)
        return case

    def _cached(self) -> dict[tuple[str, int], int]:
        """Bytes of DVC's objects by name and inode, which a shard in data/ shares."""
        objects = (self.folder / ".dvc/cache/files/md5").glob("*/*")
        found = ((path.name, path.stat()) for path in objects)
        return {(name, status.st_ino): status.st_size for name, status in found}

    def _run(self, *command: str, **variables: str) -> str:
        settings = {
            "PYTHONPATH": str(ROOT),
            "FVLM_CACHE": str(self.folder / ".fvlm"),
            "FVLM_TRACKING": "off",
            "FVLM_DEVICE": "cpu",
            "DVC_SITE_CACHE_DIR": str(self.folder / ".site"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONHASHSEED": "0",
        }
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | settings | variables,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
        return done.stdout

    def _set_params(self) -> None:
        from ruamel.yaml import YAML

        document = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
        for section, values in PARAMS.items():
            document[section] |= values
        with (self.folder / "params.yaml").open("w") as file:
            YAML().dump(document, file)

    def _save_models(self) -> None:
        from diffusers import AutoencoderKL
        from transformers import Dinov2Config, Dinov2Model

        config = Dinov2Config(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=PIXELS,
            patch_size=4,
        )
        Dinov2Model(config).save_pretrained(self.folder / "weights/dino")
        AutoencoderKL(
            block_out_channels=(8,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
        ).save_pretrained(self.folder / "weights/vae")


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(size: int, scratch: Path, until: str) -> dict[str, Case]:
    """All cases with so many videos."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix=f"scale-{size}-") as temporary:
        begun = time.monotonic()
        project = Project(Path(temporary) / "project", size, until)
        print(f"\n{size:,} videos (made in {time.monotonic() - begun:.0f} s)", flush=True)
        cases = {}
        for name, options in (("first", ()), ("known", ("-f",)), ("no-op", ()), ("added", ())):
            if name == "added":
                project.add(1)
            cases[name] = project.repro(*options)
            show(name, cases[name])
        return cases


def written_per_second(workers: int, folder: Path) -> float:
    """Clips/s of shards that so many workers hand over, as the stage makes them."""
    from fvlm.video.clips import Clip
    from fvlm.video.shards import FrameRequest, make_shard
    from fvlm.video.worker import AHEAD, Workers

    row = probe({"path": "no video"}) | {"path": None, "video_id": "video", "group": "video"}
    stretches = [(row, [Clip(f"clip-{number}", (0.0, 5.0))]) for number in range(CLIPS)]
    request = FrameRequest(stretches, num_frames=16, size=128)

    def make(number: int) -> None:
        make_shard(request, folder / f"{number}.tar", workers=pool, ahead=AHEAD)

    hands_over = "benchmarks.bench_scale:hand_over"
    with Workers(hands_over, workers) as pool, ThreadPoolExecutor(workers) as threads:
        list(threads.map(make, range(workers)))  # now all have started
        begun = time.monotonic()
        list(threads.map(make, range(SHARDS)))
        return SHARDS * CLIPS / (time.monotonic() - begun)


def measure_writing(scratch: Path) -> None:
    """One worker and two in turns; print what decode can write at most."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        os.environ["FVLM_CACHE"] = folder
        for _ in range(ROUNDS):
            for workers, found in rates.items():
                found.append(written_per_second(workers, Path(folder)))
    one, two = (statistics.median(found) for found in rates.values())
    ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
    print(f"clips/s: {rates}; ratios {min(ratios):.2f} to {max(ratios):.2f}")
    figures = {"writing_clips_per_second_1": one, "writing_clips_per_second_2": two}
    print(json.dumps(figures | {"ratio_writing_2_workers": statistics.median(ratios)}))


def show(name: str, case: Case) -> None:
    """One line a case: seconds of processor time and GiB of each stage."""
    parts = [
        f"{stage} {f['processor']:.1f} s {f['gib']:.2f} GiB" for stage, f in case.stages.items()
    ]
    rest = (
        f"dvc {case.dvc:.1f} s; new objects {case.new_bytes / 1e6:.1f} MB; wall {case.wall:.0f} s"
    )
    load = os.getloadavg()[0]
    print(f"  {name:6} {', '.join(parts)}; {rest}; load {load:.1f}", flush=True)


def exponent(found: dict[int, dict[str, Case]], stage: str) -> float | None:
    """The largest of the cases of log10 of processor time at the largest size over a tenth."""
    large = max(found)
    if large // 10 not in found:
        return None
    ratios = [
        math.log10(
            found[large][case].stages[stage]["processor"]
            / found[large // 10][case].stages[stage]["processor"]
        )
        for case in CASES
        if stage in found[large][case].stages
    ]
    return round(max(ratios), 3) if ratios else None


def main() -> None:
    """Measure, print a table, and one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage")
    parser.add_argument("--writing", action="store_true", help="only what decode writes at most")
    parser.add_argument("--stage", choices=STAGES, help="used by the benchmark itself")
    options = parser.parse_args()
    if options.stage:
        run_stage(options.stage)
        return
    if options.writing:
        measure_writing(options.folder)
        return
    found = {size: measure(size, options.folder, options.until) for size in sorted(options.sizes)}
    names = {stage: f"exponent_{stage}" for stage in STAGES} | {"train": "exponent_train_start"}
    largest = found[max(found)]
    peak = max(f["gib"] for case in largest.values() for f in case.stages.values())
    print(
        json.dumps(
            {
                **{name: exponent(found, stage) for stage, name in names.items()},
                "peak_gib_1m": round(peak, 2) if SIZES[-1] in found else None,
                "peak_gib": {s: round(f["gib"], 2) for s, f in largest["first"].stages.items()},
                "noop_dvc_seconds": round(largest["no-op"].dvc, 1),
                "added_own_seconds": round(largest["added"].own, 1),
                "added_dvc_seconds": round(largest["added"].dvc, 1),
                "added_new_megabytes": round(largest["added"].new_bytes / 1e6, 1),
                "largest": max(found),
            }
        )
    )


if __name__ == "__main__":
    main()
