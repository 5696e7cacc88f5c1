from collections.abc import Iterator

import torch

from fvlm.clips.batch import Batch
from fvlm.training.prefetch import prefetched

BATCHES = 12


def test_the_order_is_kept_and_one_batch_is_loaded_ahead() -> None:
    asked: list[int] = []

    def positions() -> Iterator[range]:
        for start in range(BATCHES):
            asked.append(start)
            yield range(start, start + 1)

    def load(positions: range) -> Batch:
        return Batch(torch.zeros(1), torch.zeros(1), [str(positions.start)])

    with prefetched(load, positions(), torch.device("cpu")) as batches:
        for number, batch in enumerate(batches):
            assert batch.keys == [str(number)]
            assert len(asked) == min(number + 2, BATCHES)
    assert asked == list(range(BATCHES))
