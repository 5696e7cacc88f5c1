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


def _weights(size: int, whole: int, part: Fraction) -> np.ndarray:
    """float64 [size, whole]: how much of each pixel lies in each of `size` equal parts."""
    edges = [float((whole - part) / 2 + part * Fraction(i, size)) for i in range(size + 1)]
    pixels = np.arange(whole)
    low, high = np.array(edges[:-1])[:, None], np.array(edges[1:])[:, None]
    covered = np.clip(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0, None)
    return np.asarray(covered / covered.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("width", "height", "pixel_format", "aspect"),
    [
        (480, 270, "yuv420p", Fraction(1)),  # begins at pixel 105, between two chroma samples
        (854, 480, "yuv420p", Fraction(1)),
        (270, 480, "yuv420p", Fraction(1)),
        (720, 480, "yuv411p", Fraction(8, 9)),  # NTSC DV
        (720, 480, "yuv411p", Fraction(32, 27)),  # wide NTSC DV: begins in the middle of a pixel
        (853, 480, "yuv420p", Fraction(1)),
        (854, 480, "yuv420p10le", Fraction(1)),
        (161, 120, "yuyv422", Fraction(1)),
        (480, 272, "yuv420p", Fraction(1)),  # begins at pixel 104: needs nothing
    ],
)
@pytest.mark.parametrize("size", [64, 192])
def test_the_square_is_the_centre_to_a_fraction_of_a_pixel(
    width: int, height: int, pixel_format: str, aspect: Fraction, size: int
) -> None:
    """Against the mean of the area of the whole picture in RGB; a pixel aside costs 9 or more."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 3 + y / 7), np.cos(y / 4 - x / 5), np.sin((x + y) / 6)]
    pixels = (128 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)
    frame = VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
    whole = frame.reformat(format="yuv444p", interpolation="BILINEAR").reformat(format="rgb24")
    planes = whole.to_ndarray().transpose(2, 0, 1).astype(np.float64)
    side = min(width * aspect, Fraction(height))
    rows, columns = _weights(size, height, side), _weights(size, width, side / aspect)
    square = FrameConverter(size, aspect).convert(frame)
    error = np.abs(square - rows @ planes @ columns.T).mean()
    assert error < 3


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
