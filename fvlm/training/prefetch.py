"""Batches read, and copied to the device, while the one before is computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fvlm.clips.batch import Batch
from fvlm.core.prefetch import Ahead

BATCHES = 2  # in memory: one is copied to the device or computed while the other is read


@contextmanager
def prefetched(
    load_batch: Callable[[range], Batch], positions: Iterator[range], device: torch.device
) -> Iterator[Iterator[Batch]]:
    """Load the next batch on a thread while the current one is computed; order is kept.

    Ends with an error of `load_batch` at the batch that it belongs to.
    """
    # Of its own stream, a copy does not wait for the computation that is queued on the GPU.
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None
    under_way: list[torch.cuda.Event] = []

    def load(wanted: range) -> tuple[Batch, torch.cuda.Event | None]:
        if copies is None:
            return load_batch(wanted).to(device), None
        if len(under_way) == BATCHES:  # the next one is read into the memory that this came from
            under_way.pop(0).synchronize()
        batch, copied = load_batch(wanted), torch.cuda.Event()
        with torch.cuda.stream(copies):
            batch = batch.to(device)
            copied.record()
        under_way.append(copied)
        return batch, copied

    with Ahead(workers=1) as ahead:
        yield (_ready(*loaded) for loaded in ahead.map(load, positions))


def _ready(batch: Batch, copied: torch.cuda.Event | None) -> Batch:
    """What follows on a GPU waits for the copy, and the copy's memory is kept until it is done."""
    if copied is not None:
        torch.cuda.current_stream().wait_event(copied)
    for value in batch.tensors():
        if value.is_cuda:
            value.record_stream(torch.cuda.current_stream())
    return batch
