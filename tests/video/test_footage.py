import numpy as np
import pytest

from fvlm.core.seeding import generator
from fvlm.video.footage import CELLS, FRAMES, hash_footage


@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 5), (8, 4), (24, 128)])
def test_every_size_of_a_clip_has_a_hash(count: int, size: int) -> None:
    frames = generator(0, "frames").integers(0, 256, (count, 3, size, size), np.uint8)
    cells = np.frombuffer(bytes.fromhex(hash_footage(frames)), np.uint8)
    assert cells.shape == (FRAMES * 3 * CELLS * CELLS,)
    assert np.ptp(cells) > 0


def test_a_cell_is_the_mean_of_its_pixels() -> None:
    frames = generator(0, "frames").integers(0, 256, (FRAMES, 3, 8, 8), np.uint8)
    expected = frames.reshape(FRAMES, 3, CELLS, 2, CELLS, 2).mean(axis=(3, 5)).round()
    found = np.frombuffer(bytes.fromhex(hash_footage(frames)), np.uint8)
    np.testing.assert_array_equal(found, expected.ravel())
