"""Batches read, and copied to the device, while the one before is computed."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from fvlm.clips.batch import Batch


@contextmanager
def prefetched(
    load_batch: Callable[[range], Batch], positions: Iterator[range], device: torch.device
) -> Iterator[Iterator[Batch]]:
    """Load the next batch on a thread while the current one is computed; order is kept.

    Ends with an error of `load_batch` at the batch that it belongs to.
    """
    # Of its own stream, a copy does not wait for the computation that is queued on the GPU.
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def load(wanted: range) -> Batch:
        if copies is None:
            return load_batch(wanted).to(device)
        with torch.cuda.stream(copies):
            batch = load_batch(wanted).to(device)
            copies.synchronize()
        return batch

    def stream(executor: ThreadPoolExecutor) -> Iterator[Batch]:
        pending = None
        for wanted in positions:
            following = executor.submit(load, wanted)
            if pending is not None:
                yield _ready(pending.result())
            pending = following
        if pending is not None:
            yield _ready(pending.result())

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as executor:
        yield stream(executor)


def _ready(batch: Batch) -> Batch:
    """Keep the GPU's memory of this batch until the computation that uses it is done."""
    for value in batch.tensors():
        if value.is_cuda:
            value.record_stream(torch.cuda.current_stream())
    return batch
