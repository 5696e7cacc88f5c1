import time

import torch

from fvlm.clips.batch import Batch
from fvlm.training.prefetch import prefetched


def test_the_order_is_kept_and_one_batch_is_loaded_ahead() -> None:
    loaded: list[int] = []

    def load(positions: range) -> Batch:
        time.sleep(0.002 * (positions.start % 3))
        loaded.append(positions.start)
        return Batch(torch.zeros(1), torch.zeros(1), [str(positions.start)])

    positions = iter([range(start, start + 1) for start in range(12)])
    with prefetched(load, positions, torch.device("cpu")) as batches:
        for number, batch in enumerate(batches):
            assert batch.keys == [str(number)]
            assert len(loaded) <= number + 2
    assert loaded == list(range(12))
