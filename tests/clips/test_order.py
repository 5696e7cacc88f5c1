import numpy as np
import pytest

from fvlm.clips.order import FrameChoice, evaluated_frames, even_frames, rows_at, trained_frames


def stream(batch: int, *, count: int, clips: int = 7, seed: int = 0) -> list[int]:
    rows = [
        rows_at(range(start, start + batch), clips=clips, seed=seed).tolist()
        for start in range(0, count, batch)
    ]
    return [row for part in rows for row in part]


def test_every_clip_once_an_epoch_in_a_new_order() -> None:
    rows = np.array(stream(1, count=70)).reshape(10, 7)
    assert (np.sort(rows, axis=1) == np.arange(7)).all()
    assert len({tuple(epoch) for epoch in rows.tolist()}) > 5


@pytest.mark.parametrize("batch", [2, 5, 10, 70])
def test_the_order_does_not_depend_on_the_batch_size(batch: int) -> None:
    assert stream(batch, count=70) == stream(1, count=70)


def test_a_batch_larger_than_the_corpus_spans_epochs() -> None:
    rows = rows_at(range(3, 3 + 64), clips=3, seed=0)
    assert rows.shape == (64,)
    assert set(np.bincount(rows).tolist()) <= {21, 22}


def test_the_order_depends_on_the_seed() -> None:
    assert stream(7, count=70, seed=0) != stream(7, count=70, seed=1)


@pytest.mark.parametrize(
    ("choice", "gaps"), [("run", {1}), ("stride", {2}), ("random", {1, 2, 3, 4, 5})]
)
def test_trained_frames_depend_on_the_position_only(choice: FrameChoice, gaps: set[int]) -> None:
    frames = trained_frames(range(200), stored=24, count=10, seed=0, choice=choice)
    assert frames.shape == (200, 10)
    assert set(np.diff(frames, axis=1).ravel().tolist()) >= gaps
    assert choice == "random" or set(np.diff(frames, axis=1).ravel().tolist()) == gaps
    assert (np.diff(frames, axis=1) > 0).all()
    assert (frames.min(), frames.max()) == (0, 23)
    again = trained_frames(range(17, 19), stored=24, count=10, seed=0, choice=choice)
    np.testing.assert_array_equal(again, frames[17:19])
    other = trained_frames(range(200), stored=24, count=10, seed=1, choice=choice)
    assert (other != frames).any()


def test_every_run_is_equally_likely() -> None:
    for choice, count, places in (("run", 16, 9), ("stride", 12, 2), ("random", 1, 24)):
        chosen: FrameChoice = choice  # type: ignore[assignment]
        frames = trained_frames(range(3000), stored=24, count=count, seed=1, choice=chosen)
        counts = np.bincount(frames[:, 0])
        assert len(counts) == places
        assert abs(counts * places / 3000 - 1).max() < 0.3


@pytest.mark.parametrize("choice", ["run", "stride", "random"])
def test_all_frames_when_as_many_are_wanted_as_are_stored(choice: FrameChoice) -> None:
    np.testing.assert_array_equal(
        trained_frames(range(2), stored=5, count=5, seed=0, choice=choice), [np.arange(5)] * 2
    )


@pytest.mark.parametrize("count", [1, 2, 5, 16, 24])
def test_even_frames_are_distinct_centred_and_even(count: int) -> None:
    frames = even_frames(stored=24, count=count)
    steps = np.diff(frames)
    assert len(frames) == count
    assert count == 1 or steps.max() - steps.min() <= 1
    assert abs(frames[0] - (23 - frames[-1])) <= 1


def test_even_frames_of_all_are_all() -> None:
    assert even_frames(stored=6, count=6).tolist() == list(range(6))


@pytest.mark.parametrize(
    ("stored", "count", "expected"),
    [
        (24, 12, list(range(0, 23, 2))),
        (24, 16, list(range(4, 20))),
        (24, 24, list(range(24))),
        (24, 8, list(range(1, 23, 3))),
        (24, 5, [3, 7, 11, 15, 19]),
        (8, 3, [1, 3, 5]),
    ],
)
def test_evaluated_frames_have_equal_gaps_in_the_middle(
    stored: int, count: int, expected: list[int]
) -> None:
    assert evaluated_frames(stored=stored, count=count).tolist() == expected
