"""Orientation, centre square, colour."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from fvlm.video.geometry import FrameConverter, Orientation, centre_square


@pytest.mark.parametrize(
    ("orientation", "degrees", "expected"),
    [
        (Orientation(), 0, [[1, 2], [3, 4]]),
        (Orientation(True, True, False), 90, [[3, 1], [4, 2]]),
        (Orientation(False, True, True), 180, [[4, 3], [2, 1]]),
        (Orientation(True, False, True), 270, [[2, 4], [1, 3]]),
        (Orientation(False, True, False), 0, [[2, 1], [4, 3]]),
    ],
)
def test_orientation(orientation: Orientation, degrees: int, expected: list[list[int]]) -> None:
    picture = np.array([[[1, 2], [3, 4]]])
    np.testing.assert_array_equal(orientation.apply(picture), [expected])
    assert orientation.degrees == degrees


@pytest.mark.parametrize(
    ("width", "height", "aspect", "expected"),
    [
        (160, 120, Fraction(1), (120, 120)),
        (120, 160, Fraction(1), (120, 120)),
        (160, 120, Fraction(2), (60, 120)),  # displayed as 320x120
        (160, 120, Fraction(1, 2), (160, 80)),  # displayed as 80x120
        (1, 1, Fraction(100), (1, 1)),
    ],
)
def test_square_of_the_displayed_picture(
    width: int, height: int, aspect: Fraction, expected: tuple[int, int]
) -> None:
    assert centre_square(width, height, aspect) == expected


def test_resize_is_the_mean_of_the_area() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    frame = VideoFrame.from_ndarray(pixels, format="rgb24")
    small = FrameConverter(16, None).convert(frame)
    mean = pixels.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(small - mean).max() <= 1


@pytest.mark.parametrize("colorspace", ["ITU709", "ITU601"])
@pytest.mark.parametrize("color_range", ["MPEG", "JPEG"])
def test_colour_matrix_and_range_are_the_frame_s_own(colorspace: str, color_range: str) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:] = (20, 200, 90)
    frame = VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        format="yuv444p",
        dst_colorspace=colorspace,
        dst_color_range=av.video.reformatter.ColorRange[color_range],
    )
    converted = FrameConverter(8, None).convert(frame)
    expected = np.array([20, 200, 90])[:, None, None]
    assert np.abs(converted.astype(int) - expected).max() <= 3
