"""Sampling: spread, exact, strictly increasing, for any timestamps."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvlm.core.errors import VideoError
from fvlm.video.sample import choose_frames, target_times

timelines = st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=200, unique=True).map(
    sorted
)


def test_times_are_centres_of_equal_intervals() -> None:
    assert target_times(0, 100, num_frames=5) == [10, 30, 50, 70, 90]
    assert target_times(10, 11, num_frames=2) == [10.25, 10.75]


def test_constant_frame_rate_takes_the_middle_of_each_interval() -> None:
    assert choose_frames(range(0, 1000, 10), 1000, num_frames=4) == [12, 37, 62, 87]


def test_all_frames_are_taken_when_there_are_just_enough() -> None:
    assert choose_frames([0, 1, 2, 900], 1000, num_frames=4) == [0, 1, 2, 3]


def test_a_frame_that_stays_on_display_is_stored_once() -> None:
    pts = [0, 10, 20, 900, 910, 920, 930]  # frame 2 covers most of the clip
    chosen = choose_frames(pts, 940, num_frames=4)
    assert chosen == [2, 3, 4, 5]


def test_too_few_frames_is_a_typed_reason() -> None:
    with pytest.raises(VideoError) as error:
        choose_frames([0, 1], 2, num_frames=3)
    assert error.value.reason == "too_few_frames"


@given(timelines, st.integers(1, 100), st.integers(1, 2**30))
def test_indices_are_strictly_increasing_and_valid(
    pts: list[int], num_frames: int, last: int
) -> None:
    if len(pts) < num_frames:
        return
    chosen = choose_frames(pts, pts[-1] + last, num_frames=num_frames)
    assert len(chosen) == num_frames
    assert all(a < b for a, b in pairwise(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] < len(pts)


@given(timelines, st.integers(1, 8), st.integers(1, 2**30), st.integers(-(2**40), 2**40))
def test_shifting_all_times_changes_nothing(
    pts: list[int], num_frames: int, last: int, shift: int
) -> None:
    if len(pts) < num_frames:
        return
    moved = [time + shift for time in pts]
    assert choose_frames(pts, pts[-1] + last, num_frames=num_frames) == choose_frames(
        moved, moved[-1] + last, num_frames=num_frames
    )
