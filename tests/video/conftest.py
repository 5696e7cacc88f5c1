"""Real videos of many kinds, rendered once per session.

Frame `i` of each shows a moving texture, so that no two frames are alike and motion compensation,
reordering and skipping all have something to get wrong.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from fvlm.video.decode import DecodedClip, decode_video
from fvlm.video.probe import probe_video

NUM_FRAMES = 100
FPS = 25


@cache
def picture(index: int, width: int, height: int) -> np.ndarray:
    """Frame `index`: uint8 [H, W, 3]; waves that travel at different speeds, and a moving box."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [
        np.sin(x / 7 + index / 3) + np.cos(y / 5 - index / 4),
        np.sin((x + y) / 11 - index / 5) + np.cos(x / 4),
        np.sin(y / 6 + index / 2) + np.cos((x - y) / 9 + index / 7),
    ]
    frame = np.stack([(wave + 2) * 63 for wave in waves], axis=-1)
    left, top = (index * 3) % max(width - 12, 1), (index * 2) % max(height - 10, 1)
    frame[top : top + 10, left : left + 12] = (index * 37 % 256, index * 91 % 256, index * 13 % 256)
    return frame.round().astype(np.uint8)


def numbered(index: int, width: int, height: int) -> np.ndarray:
    """Frame `index` as its binary number: nine black or white blocks fill the centre square."""
    bits = [255 * (index >> bit & 1) for bit in range(9)]
    side = min(width, height)
    square = np.array(bits, np.uint8).reshape(3, 3).repeat(side // 3, 0).repeat(side // 3, 1)
    frame = np.full((height, width, 3), 128, np.uint8)
    top, left = (height - len(square)) // 2, (width - len(square)) // 2
    frame[top : top + len(square), left : left + len(square)] = square[..., None]
    return frame


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers in stored frames [T, 3, S, S]; S a multiple of 6."""
    third = frames.shape[-1] // 3
    centres = frames[:, 1, third // 2 :: third, third // 2 :: third]
    bits = (centres > 127).reshape(len(frames), 9)
    return [int(number) for number in bits @ (1 << np.arange(9))]


@dataclass(frozen=True)
class Recipe:
    """How to render one video; `times` are frame times in units of 1/FPS seconds."""

    codec: str
    width: int = 160
    height: int = 120
    pixel_format: str = "yuv420p"
    num_frames: int = NUM_FRAMES
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    times: Callable[[int], int] = lambda index: index
    shift: int = 0  # added to all times after encoding; negative makes an edit list
    rotation: int = 0  # degrees anticlockwise, as FFmpeg counts
    sample_aspect_ratio: Fraction | None = None
    draw: Callable[[int, int, int], np.ndarray] = picture
    container: str | None = None  # FFmpeg's name, where the suffix does not tell
    fps: int = FPS

    def render(self, path: Path) -> Path:
        """Encode into `path`, whose suffix chooses the container."""
        with av.open(
            str(path), "w", format=self.container, options=self.container_options
        ) as container:
            stream = container.add_stream(self.codec, rate=self.fps, options=self.options)
            assert isinstance(stream, VideoStream)
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, self.pixel_format
            stream.codec_context.time_base = Fraction(1, self.fps)
            stream.codec_context.thread_count = 1
            if self.sample_aspect_ratio:
                stream.codec_context.sample_aspect_ratio = self.sample_aspect_ratio
            if self.rotation:
                stream.set_display_rotation(self.rotation)
            for index in [*range(self.num_frames), None]:
                frame = None
                if index is not None:
                    pixels = self.draw(index, self.width, self.height)
                    frame = VideoFrame.from_ndarray(pixels, format="rgb24")
                    frame.pts, frame.time_base = self.times(index), Fraction(1, self.fps)
                for packet in stream.encode(frame):
                    if packet.pts is not None and packet.dts is not None:
                        packet.pts += self.shift
                        packet.dts += self.shift
                    container.mux(packet)
        return path


def _irregular(index: int) -> int:
    """Variable frame rate: bursts, pauses, and one frame that stays for two seconds."""
    return index * 3 + index % 2 + (50 if index >= 60 else 0)


X264 = {"preset": "veryfast", "g": "30", "sc_threshold": "0"}
VP9 = {"g": "30", "deadline": "realtime", "cpu-used": "8"}
RECIPES: dict[str, Recipe] = {
    "h264_b.mp4": Recipe("libx264", options={**X264, "bf": "3"}),
    "h264_no_b.mp4": Recipe("libx264", options={**X264, "bf": "0"}),
    "h264_pyramid.mkv": Recipe(
        "libx264", options={**X264, "bf": "7", "x264-params": "b-pyramid=normal:ref=4"}
    ),
    "h264_open_gop.mp4": Recipe(
        "libx264", options={**X264, "bf": "3", "x264-params": "open-gop=1"}
    ),
    "h264_intra_refresh.mp4": Recipe(
        "libx264", options={**X264, "bf": "0", "x264-params": "intra-refresh=1"}
    ),
    "h264_vfr.mp4": Recipe("libx264", options={**X264, "bf": "3"}, times=_irregular),
    "h264_vfr.mkv": Recipe("libx264", options={**X264, "bf": "2"}, times=_irregular),
    "h264_edit_list.mp4": Recipe(
        "libx264",
        options={**X264, "bf": "2"},
        container_options={"avoid_negative_ts": "disabled"},
        shift=-40,
    ),
    "h264_late_start.mp4": Recipe("libx264", options={**X264, "bf": "2"}, shift=50),
    "h264_fragmented.mp4": Recipe(
        "libx264", options=X264, container_options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "h264_10_bit.mp4": Recipe("libx264", options=X264, pixel_format="yuv420p10le"),
    "h264_hdr.mp4": Recipe(
        "libx264",
        options={
            **X264,
            "x264-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc",
        },
        pixel_format="yuv420p10le",
    ),
    "h264_444_odd.mp4": Recipe("libx264", 161, 121, pixel_format="yuv444p", options=X264),
    "h264_turned.mp4": Recipe("libx264", options={**X264, "bf": "2"}, rotation=-90),
    "h264_upside_down.mp4": Recipe("libx264", options={**X264, "bf": "2"}, rotation=180),
    "h264_turned_left.mp4": Recipe("libx264", options={**X264, "bf": "2"}, rotation=90),
    "h264_wide_pixels.mp4": Recipe("libx264", options=X264, sample_aspect_ratio=Fraction(2)),
    "h264_one_pixel.mp4": Recipe("libx264", 1, 1, pixel_format="yuv444p", options=X264),
    "h264.ts": Recipe("libx264", options={**X264, "bf": "3"}),
    "h264_open_gop.ts": Recipe("libx264", options={**X264, "bf": "3", "x264-params": "open-gop=1"}),
    "h264.flv": Recipe("libx264", options={**X264, "bf": "3"}),
    "hevc_open_gop.mp4": Recipe(
        "libx265",
        options={"preset": "ultrafast", "g": "30", "x265-params": "log-level=none:bframes=4"},
    ),
    "hevc.mkv": Recipe(
        "libx265",
        options={
            "preset": "ultrafast",
            "g": "30",
            "x265-params": "log-level=none:bframes=3:b-pyramid=1:open-gop=0",
        },
    ),
    "vp8.webm": Recipe(
        "libvpx",
        options={"g": "30", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "16"},
    ),
    "vp9.webm": Recipe(
        "libvpx-vp9",
        options={**VP9, "auto-alt-ref": "1", "lag-in-frames": "16"},
    ),
    "vp9.mp4": Recipe("libvpx-vp9", options=VP9),
    "av1.mp4": Recipe("libsvtav1", options={"g": "30", "preset": "12"}),
    "av1.mkv": Recipe("libsvtav1", options={"g": "30", "preset": "12"}),
    "mpeg4_b.mp4": Recipe("mpeg4", options={"g": "30", "bf": "2"}),
    "mpeg4.avi": Recipe("mpeg4", options={"g": "30"}),
    "mpeg2_b.mpg": Recipe("mpeg2video", options={"g": "15", "bf": "2"}),
    "mpeg2.ts": Recipe("mpeg2video", options={"g": "15", "bf": "2"}),
    "mpeg2.mkv": Recipe("mpeg2video", options={"g": "15", "bf": "2"}),
    "mjpeg.avi": Recipe("mjpeg", pixel_format="yuvj420p"),
    "mjpeg.mkv": Recipe("mjpeg", pixel_format="yuvj420p"),
    "msmpeg4.avi": Recipe("msmpeg4", options={"g": "30"}),
    "ffv1.mkv": Recipe("ffv1"),
}


B_FRAMES = {"g": "12", "bf": "2"}
LIBVPX = {"g": "12", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "8"}
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"preset": "veryfast", "g": "12", "bf": "3"}),
    "hevc": (
        "libx265",
        {"preset": "ultrafast", "g": "12", "x265-params": "log-level=none:bframes=3"},
    ),
    "vp8": ("libvpx", LIBVPX),
    "vp9": ("libvpx-vp9", {**LIBVPX, "cpu-used": "8"}),
    "mpeg4": ("mpeg4", B_FRAMES),
    "mpeg2": ("mpeg2video", B_FRAMES),
    "mpeg1": ("mpeg1video", B_FRAMES),
    "mjpeg": ("mjpeg", {}),
    "wmv2": ("wmv2", {}),
    "msmpeg4": ("msmpeg4", {}),
    "flv": ("flv", {}),
    "h263p": ("h263p", {}),
    "ffv1": ("ffv1", {}),
    "rv20": ("rv20", {}),
    "prores": ("prores_ks", {}),
    "gif": ("gif", {}),
}
FORMATS = {"h264": "yuv420p", "mjpeg": "yuvj420p", "prores": "yuv422p10le", "gif": "rgb8"}
RAW = {"h264": "h264", "hevc": "hevc", "m4v": "m4v", "m2v": "mpeg2video"}  # suffix: muxer


def render_all(folder: Path) -> dict[str, Path]:
    """Render every recipe; SVT-AV1 can hang in a process that ran other encoders, so in its own."""
    for name, recipe in RECIPES.items():
        if recipe.codec != "libsvtav1":
            recipe.render(folder / name)
    for name in [name for name, recipe in RECIPES.items() if recipe.codec == "libsvtav1"]:
        command = [sys.executable, __file__, name, str(folder / name)]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    return {name: folder / name for name in RECIPES}


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of a recipe -> the rendered file."""
    return render_all(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def rendered_picture() -> Callable[[int, int, int], np.ndarray]:
    """Frame `index` as it was before encoding, for a width and a height."""
    return picture


@pytest.fixture(scope="session")
def numbers_of() -> Callable[[np.ndarray], list[int]]:
    """The numbers that frames [T, 3, S, S] show."""
    return numbers


@pytest.fixture
def render(tmp_path: Path) -> Callable[..., Path]:
    """render("h264.mp4", frames=40, first=0, ...): a film whose frame n shows `first + n`."""

    def make(pair: str, *, name: str = "", frames: int = 40, first: int = 0, **more: Any) -> Path:
        codec, suffix = pair.split(".", 1)
        encoder, options = CODECS[codec]
        recipe = Recipe(
            encoder,
            96,
            96,
            draw=lambda n, *size: numbered(first + n, *size),
            num_frames=frames,
            pixel_format=FORMATS.get(codec, "yuv420p"),
            container=RAW.get(suffix),
            fps=25 if codec in ("mpeg1", "mpeg2") else 10,
        )
        return Path(
            replace(recipe, **{"options": options, **more}).render(tmp_path / (name or pair))
        )

    return make


@pytest.fixture
def every_frame() -> Callable[[Path], DecodedClip]:
    """All frames of a file, as they are stored, 96 x 96."""

    def decode(path: Path) -> DecodedClip:
        clip = decode_video(str(path), num_frames=probe_video(str(path)).frames, size=96)
        assert all(a < b for a, b in pairwise(clip.pts_seconds))
        return clip

    return decode


@pytest.fixture
def shown(every_frame: Callable[[Path], DecodedClip]) -> Callable[[Path], list[int]]:
    """The numbers that all frames of a file show, as they are stored."""
    return lambda path: numbers(every_frame(path).frames)


if __name__ == "__main__":
    RECIPES[sys.argv[1]].render(Path(sys.argv[2]))
