"""From a decoded frame to a stored one: displayed geometry, centre square, area resize, RGB.

The stored frame is the centre square of what a player shows: pixels are stretched by the sample
aspect ratio and the picture is turned by the container's display matrix. Colour follows the
frame's own matrix and range; a frame without a matrix is read as BT.601, as FFmpeg does. High bit
depths are rounded to 8 bits; HDR transfer curves are kept as they are (no tone mapping).
"""

import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.buffer import Buffer
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

# Exact rounding and no SIMD differences: the same bytes on every machine.
SCALE_FLAGS = "area+accurate_rnd+full_chroma_int+bitexact"


@dataclass(frozen=True)
class Orientation:
    """How the coded picture becomes the displayed one: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def degrees(self) -> int:
        """Clockwise turn in degrees, leaving mirroring aside."""
        if self.transpose:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Orient one picture [C, H, W]."""
        if self.transpose:
            picture = picture.transpose(0, 2, 1)
        if self.mirror_x:
            picture = picture[:, :, ::-1]
        if self.mirror_y:
            picture = picture[:, ::-1]
        return picture


def orientation_of(frame: VideoFrame) -> Orientation:
    """Read the display matrix that travels with the frame; nonsense means upright.

    The matrix maps (x, y) to (a x + c y, b x + d y), y downwards, in 16.16 fixed point. Source:
    ISO/IEC 14496-12, track header box.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, Buffer):
        return Orientation()
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


class FrameConverter:
    """Turns decoded frames into stored ones: uint8 [3, size, size] RGB."""

    def __init__(self, size: int, sample_aspect_ratio: Fraction | None) -> None:
        self._size = size
        self._aspect = sample_aspect_ratio or Fraction(1)
        self._graph: Graph | None = None
        self._graph_key: tuple[int, int, str, int, int] | None = None

    def convert(self, frame: VideoFrame) -> np.ndarray:
        """The displayed centre square of the frame, resized, RGB."""
        key = (
            frame.width,
            frame.height,
            frame.format.name,
            frame.colorspace,
            frame.color_range,
        )
        if self._graph is None or key != self._graph_key:
            self._graph, self._graph_key = self._build(*key), key
        self._graph.vpush(frame)
        scaled = self._graph.vpull()
        assert isinstance(scaled, VideoFrame)
        picture = np.empty((3, self._size, self._size), np.uint8)
        for channel, plane in zip((1, 2, 0), scaled.planes, strict=True):  # green, blue, red
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            picture[channel] = rows[: self._size, : self._size]
        return np.ascontiguousarray(orientation_of(frame).apply(picture))

    def _build(
        self, width: int, height: int, pixel_format: str, colorspace: int, color_range: int
    ) -> Graph:
        source = {
            "video_size": f"{width}x{height}",
            "pix_fmt": pixel_format,
            "time_base": "1/1000",  # nothing reads it
            "colorspace": str(colorspace),
            "range": str(color_range),
        }
        crop = centre_square(width, height, self._aspect)
        graph = Graph()
        graph.threads = 1
        graph.link_nodes(
            graph.add("buffer", **source),
            *(graph.add(*step) for step in _crop_steps((width, height), crop, pixel_format)),
            graph.add("scale", f"w={self._size}:h={self._size}:flags={SCALE_FLAGS}"),
            graph.add(
                "format", "gbrp"
            ),  # planes: at least as exact as packed RGB, in half the time
            graph.add("buffersink"),
        ).configure()
        return graph


def _crop_steps(
    size: tuple[int, int], crop: tuple[int, int], pixel_format: str
) -> list[tuple[str, str]]:
    """Filters that cut out the centre exactly: names and arguments.

    FFmpeg crops at whole pixels of the coarsest plane. Where the square begins between them, the
    picture is first made one without coarse planes; where it begins in the middle of a pixel, each
    is first made two.
    """
    margins = [whole - part for whole, part in zip(size, crop, strict=True)]
    steps = []
    if any(margin % (2 * cell) for margin, cell in zip(margins, _cell(pixel_format), strict=True)):
        steps += [("scale", f"flags={SCALE_FLAGS}"), ("format", "gbrp")]
    halves = [margin % 2 for margin in margins]
    if any(halves):
        width, height = (part + half for part, half in zip(crop, halves, strict=True))
        factors = f"w={1 + halves[0]}*iw:h={1 + halves[1]}*ih"
        steps += [("crop", f"w={width}:h={height}"), ("scale", f"{factors}:flags=neighbor")]
    width, height = (part * (1 + half) for part, half in zip(crop, halves, strict=True))
    return [*steps, ("crop", f"w={width}:h={height}")]  # centred by default


def _cell(pixel_format: str) -> tuple[int, int]:
    """Width and height in pixels of one sample of the coarsest plane."""
    plane = VideoFormat(pixel_format, 64, 64)
    return 64 // plane.chroma_width(), 64 // plane.chroma_height()


def centre_square(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Coded width and height of the largest square of the displayed picture.

    `aspect` is the sample aspect ratio: displayed width of a coded pixel over its height.
    """
    displayed = width * aspect
    if displayed >= height:
        return max(round(height / aspect), 1), height
    return width, max(round(displayed), 1)
