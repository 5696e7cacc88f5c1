import numpy as np
import pytest
from numpy.typing import NDArray

from fvlm.core.seeding import generator
from fvlm.shards import footage
from fvlm.shards.footage import CELLS, FRAMES, hash_footage, show_same

Clips = NDArray[np.float64]


@pytest.fixture
def clips() -> Clips:
    """40 clips of 24 frames with soft shapes, [40,24,3,16,16], 20 to 230."""
    coarse = generator(0, "clips").uniform(20, 230, (40, 8, 3, 4, 4))
    return coarse.repeat(3, axis=1).repeat(4, axis=3).repeat(4, axis=4)


def hashes(clips: Clips) -> list[str]:
    return [hash_footage(clip.round().clip(0, 255).astype(np.uint8)) for clip in clips]


def test_a_copy_of_worse_quality_is_found_and_no_other_clip(clips: Clips) -> None:
    noise = generator(0, "noise").normal(0, 8, clips.shape)
    worse = 0.98 * clips + noise + 1
    assert show_same(hashes(worse[:10]), hashes(clips[5:])) == [False] * 5 + [True] * 5
    assert show_same(hashes(clips[:20]), hashes(clips[20:])) == [False] * 20


def test_another_order_of_frames_is_other_footage(clips: Clips) -> None:
    assert show_same(hashes(clips[:5, ::-1]), hashes(clips)) == [False] * 5


def test_brighter_footage_is_other_footage(clips: Clips) -> None:
    assert show_same(hashes(clips[:5] + 10), hashes(clips)) == [False] * 5


def test_a_clip_that_was_trained_on_in_many_copies_is_found(clips: Clips) -> None:
    many = hashes(clips[:1]) * 200 + hashes(clips[20:])
    assert show_same(hashes(clips[:3]), many) == [True, False, False]


def test_what_many_clips_share_makes_no_pair_of_each_two(
    clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dark title in all of them would make every clip a candidate of every other one."""
    clips[:, :3] = 20
    compared = []
    same = footage._is_same

    def counted(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
        compared.append(one)
        return same(one, other)

    monkeypatch.setattr(footage, "_is_same", counted)
    monkeypatch.setattr(footage, "COMMON", 2)
    assert show_same(hashes(clips[:20]), hashes(clips[20:])) == [False] * 20
    assert len(compared) < 20 * 20 / 4


def test_clips_of_one_colour_are_the_same() -> None:
    flat = np.full((1, 24, 3, 16, 16), 90.0)
    assert show_same(hashes(flat), hashes(flat)) == [True]
    assert show_same(hashes(flat), hashes(flat + 30)) == [False]


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
