"""Delivering batches of stored features: this project's reader against three others and the limit.

    python -m benchmarks.bench_loader [--samples 80] [--rounds 5] [--folder scratch]

Samples are 24x325x384 float16 (6 MB), batches hold 16 random frames of each of 20 random samples,
the page cache is warm. The ways take turns; in its turn each delivers every sample several times,
timed from its first batch on, so that starting worker processes does not count:

    shards       this project: threads read the wanted frames into one batch, made beforehand
    pt_files     one .pt file a clip, torch.load, DataLoader with 2 workers
    webdataset   the same shards through webdataset, DataLoader with 2 workers
    litdata      the same samples in LitData's format, its StreamingDataLoader with 2 workers
    limit        one plain read of as many bytes into one buffer, made beforehand

The shards' content is verified once, before. Rates are medians over the rounds, spread = (largest -
smallest) / median. Last line: one JSON object; a ratio above 1 means that this project is faster,
`ratio_limit` is its rate as a share of the limit's. litdata is null when it is not installed.
"""

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset

from fvlm.core.machine import core_count
from fvlm.shards.manifest import Manifest, ShardEntry, write_manifest
from fvlm.shards.read import open_shards
from fvlm.shards.write import write_shard

SHAPE, KEPT, BATCH, WORKERS = (24, 325, 384), 16, 20, 2
SAMPLES_PER_SHARD = 40
PASSES = 6  # over the samples in one turn
Way = Callable[[int], Iterable[Any]]  # round -> batches


def sample(number: int) -> np.ndarray:
    """The features of one clip: [24, 325, 384] float16."""
    bits = np.random.default_rng(number).integers(0, 0x7C00, SHAPE, np.uint16)
    return bits.view(np.float16)  # any finite positive number


def choose_frames(rng: np.random.Generator) -> np.ndarray:
    """A random ordered subset of the stored frames."""
    return np.sort(rng.permutation(SHAPE[0])[:KEPT])


def with_shards(folder: Path, count: int) -> tuple[Way, Way]:
    """This project's reader, and the limit on the same files."""
    entries = []
    for shard, start in enumerate(range(0, count, SAMPLES_PER_SHARD)):
        path = folder / f"train-{shard:06d}.tar"
        numbers = range(start, min(start + SAMPLES_PER_SHARD, count))
        rows = ((f"{n:06d}", {"tokens.npy": sample(n), "json": {"number": n}}) for n in numbers)
        facts = write_shard(path, rows).model_dump(exclude={"md5"})
        entries.append(ShardEntry(name=path.name, split="train", fingerprint="", **facts))
    manifest = Manifest(stage="encode", made_by="", recipe={}, shards=entries)
    write_manifest(folder, manifest)
    reader = open_shards(folder, split="train")
    buffer = np.empty((BATCH, KEPT, *SHAPE[1:]), np.float16)
    plain = buffer.reshape(-1).view(np.uint8).data

    def run(number: int) -> Iterator[torch.Tensor]:
        rng = np.random.default_rng(number)
        for _ in range(PASSES):
            for chosen in rng.permutation(count).reshape(-1, BATCH):
                frames = np.stack([choose_frames(rng) for _ in chosen])
                reader.read(chosen, ["tokens"], frames=frames, out={"tokens": buffer})
                yield torch.from_numpy(buffer)

    def limit(_: int) -> Iterator[np.ndarray]:
        for start in list(range(0, count, BATCH)) * PASSES:
            shard, inside = divmod(start, SAMPLES_PER_SHARD)
            descriptor = os.open(folder / f"train-{shard:06d}.tar", os.O_RDONLY)
            read = os.preadv(descriptor, [plain], inside * (len(plain) // BATCH))
            os.close(descriptor)
            assert read == len(plain)
            yield buffer

    check = reader.read([count - 1], ["tokens"], frames=[[1, 5]])["tokens"]
    assert np.array_equal(check[0], sample(count - 1)[[1, 5]])
    return run, limit


class PtFiles(Dataset[torch.Tensor]):
    """One .pt file a clip."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        for number in range(count):
            tokens = torch.from_numpy(sample(number))
            torch.save({"dino_features": tokens, "caption": ""}, folder / f"{number:06d}.pt")

    def __len__(self) -> int:
        return self._count * PASSES

    def __getitem__(self, number: int) -> torch.Tensor:
        path = self._folder / f"{number % self._count:06d}.pt"
        return take(torch.load(path, weights_only=True)["dino_features"])


def take(stored: torch.Tensor) -> torch.Tensor:
    """A random ordered subset of frames, in the worker."""
    frames = torch.randperm(SHAPE[0])[:KEPT].sort().values
    return stored[frames]


def take_row(row: tuple[np.ndarray]) -> torch.Tensor:
    """The same for a sample of webdataset."""
    return take(torch.from_numpy(row[0]))


def take_dict(row: dict[str, Any]) -> torch.Tensor:
    """The same for a sample of LitData."""
    return take(torch.as_tensor(row["tokens"]))


def with_pt_files(folder: Path, count: int) -> Way:
    dataset = PtFiles(folder, count)
    return lambda _: DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS)


def with_webdataset(folder: Path) -> Way:
    """Shards and samples shuffled; a batch is put together by the DataLoader, as is usual."""
    urls = sorted(str(path) for path in folder.glob("*.tar")) * PASSES

    def run(_: int) -> DataLoader[torch.Tensor]:
        dataset = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(BATCH).decode()
        rows = dataset.to_tuple("tokens.npy").map(take_row)
        return DataLoader(rows, BATCH, num_workers=WORKERS)

    return run


def with_litdata(folder: Path, count: int) -> Way | None:
    if importlib.util.find_spec("litdata") is None:
        return None
    import litdata
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number in range(count):
        writer[number] = {"tokens": torch.from_numpy(sample(number))}
    writer.done()
    writer.merge()

    dataset = litdata.StreamingDataset(str(folder), shuffle=True, transform=take_dict)
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True
    )
    return lambda _: chain.from_iterable(loader for _ in range(PASSES))


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Samples a second of each way in each round, after one that is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            batches = iter(way(number))
            next(batches)
            start = time.perf_counter()
            delivered = sum(len(batch) for batch in batches)
            rate = delivered / (time.perf_counter() - start)
            if number:
                rates[name].append(rate)
                print(f"round {number} {name}: {delivered} samples, {rate:.0f}/s", flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--samples", type=int, default=80, help="a multiple of 20; 18 MB of disk each"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where the scratch data goes (removed at the end)"
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        os.environ["DVC_ROOT"] = scratch  # the reader's records go there too
        folders = {name: Path(scratch) / name for name in ("shards", "pt_files", "litdata")}
        for folder in folders.values():
            folder.mkdir()
        ours, limit = with_shards(folders["shards"], options.samples)
        ways: dict[str, Way | None] = {
            "shards": ours,
            "pt_files": with_pt_files(folders["pt_files"], options.samples),
            "webdataset": with_webdataset(folders["shards"]),
            "litdata": with_litdata(folders["litdata"], options.samples),
            "limit": limit,
        }
        rates = measure({name: way for name, way in ways.items() if way}, options.rounds)
    figures: dict[str, float | None] = {}
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name in ways:
        figures[f"ratio_{name}"] = (
            round(median["shards"] / median[name], 2) if name in median else None
        )
    del figures["ratio_shards"]
    for name, values in rates.items():
        figures[f"samples_per_second_{name}"] = round(median[name], 1)
        figures[f"spread_{name}"] = round((max(values) - min(values)) / median[name], 2)
    print(json.dumps(figures | {"cores": core_count(), "samples": options.samples}))


if __name__ == "__main__":
    main()
