"""Every frame as a player shows it: pictures that carry their number tell which frame is stored."""

import io
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition
from av.video.stream import VideoStream

from fvlm.errors import VideoError
from fvlm.video.decode import DecodedClip, decode_video
from fvlm.video.probe import probe_video

Numbered = Callable[..., Any]
DATA = Path(__file__).parent / "data"
FRAMES, SIZE = 40, 96
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
CONTAINERS = {  # that PyAV can write with each codec
    "h264": "3gp asf avi flv h264 mkv mov mp4 nut ts wtv",
    "hevc": "flv hevc mkv mov mp4 nut ts",
    "vp8": "asf avi ivf mkv nut ogv webm",
    "vp9": "asf avi flv ivf mkv mp4 nut webm",
    "mpeg4": "3gp asf avi m4v mkv mov mp4 mpg nut ts",
    "mpeg2": "asf avi m2v mkv mov mp4 mpg mxf ts",
    "mpeg1": "asf avi mkv mov mpg ts",
    "mjpeg": "asf avi mkv mov mp4 swf",
    "wmv2": "asf avi",
    "msmpeg4": "asf avi",
    "flv": "avi flv swf",
    "h263p": "asf avi",
    "ffv1": "avi mkv",
    "rv20": "rm",
    "prores": "mkv mov",
    "gif": "gif mov",
}
PAIRS = [f"{codec}.{suffix}" for codec, names in CONTAINERS.items() for suffix in names.split()]


@pytest.fixture
def render(numbered_recipe: Numbered, tmp_path: Path) -> Callable[..., Path]:
    """render("h264.mp4", frames=40, first=0, ...): a film whose frame n shows `first + n`."""

    def make(
        pair: str, *, name: str = "", frames: int = FRAMES, first: int = 0, **more: Any
    ) -> Path:
        codec, suffix = pair.split(".", 1)
        encoder, options = CODECS[codec]
        recipe = numbered_recipe(
            encoder,
            first=first,
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
def shown(numbers_of: Callable[[np.ndarray], list[int]]) -> Callable[[Path], list[int]]:
    """The numbers of all frames of a file, as they are stored."""
    return lambda path: numbers_of(decode_every_frame(path).frames)


def decode_every_frame(path: Path) -> DecodedClip:
    frames = probe_video(str(path)).frames
    clip = decode_video(str(path), num_frames=frames, size=SIZE)
    assert all(a < b for a, b in pairwise(clip.pts_seconds))
    return clip


def as_ffmpeg_shows(path: Path) -> np.ndarray:
    """Every frame that the ffmpeg command decodes, in its order: uint8 [T, 3, SIZE, SIZE]."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-fps_mode", "passthrough", "-vf"]
    command += [f"scale={SIZE}:{SIZE}", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, SIZE, SIZE, 3).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("pair", PAIRS)
def test_frames_come_in_playing_order(
    render: Callable[..., Path],
    numbers_of: Callable[[np.ndarray], list[int]],
    pair: str,
) -> None:
    path = render(pair)
    clip = decode_every_frame(path)
    assert numbers_of(clip.frames) == list(range(FRAMES))
    rate = 25 if pair.startswith(("mpeg1", "mpeg2")) else 10
    assert clip.pts_seconds == pytest.approx([n / rate for n in range(FRAMES)], abs=0.002)
    few = decode_video(str(path), num_frames=7, size=SIZE)  # perhaps another way
    assert numbers_of(few.frames) == [round(seconds * rate) for seconds in few.pts_seconds]
    if shutil.which("ffmpeg"):
        assert numbers_of(as_ffmpeg_shows(path)) == list(range(FRAMES))


@pytest.mark.parametrize("first_part", [0, 20])
@pytest.mark.parametrize(
    "pair", ["h264.ts", "hevc.ts", "mpeg4.ts", "mpeg2.ts", "mpeg2.mpg", "mpeg4.mpg"]
)
@pytest.mark.parametrize("held", [2**28, 0])
def test_joined_recordings_follow_each_other(
    render: Callable[..., Path],
    shown: Callable[[Path], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    pair: str,
    first_part: int,
    held: int,
) -> None:
    monkeypatch.setattr("fvlm.video.timeline.HELD_BYTES", held)
    path = render(pair, frames=20, first=first_part)
    other = render(pair, frames=20, first=20 - first_part, name=f"other.{path.suffix}")
    path.write_bytes(path.read_bytes() + other.read_bytes())
    assert shown(path) == [
        *range(first_part, first_part + 20),
        *range(20 - first_part, 40 - first_part),
    ]
    rate = 25 if pair.startswith("mpeg2") else 10
    facts = probe_video(str(path))
    assert (facts.fps, facts.duration_seconds) == pytest.approx((rate, 40 / rate), rel=0.01)


@pytest.mark.parametrize("pair", ["h264.mkv", "vp9.webm", "h264.avi", "h264.frag.mp4", "mjpeg.mkv"])
def test_joined_files_of_other_kinds_are_refused(render: Callable[..., Path], pair: str) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if "frag" in pair else {}
    parts = [
        render(pair, frames=20, first=first, name=f"{first}.{pair}", container_options=options)
        for first in (0, 20)
    ]
    path = parts[0]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(VideoError) as error:
        decode_every_frame(path)
    assert error.value.reason == "wrong_frames"


@pytest.mark.parametrize("pair", ["h264.mp4", "h264.mov", "hevc.mov", "hevc.mp4", "h264.frag.mp4"])
@pytest.mark.parametrize("pause", [20, 37, 39])
def test_a_pause_lasts_as_long_as_it_does(
    render: Callable[..., Path], shown: Callable[[Path], list[int]], pair: str, pause: int
) -> None:
    """A decoding step is not how long a frame is shown; with the encoders' own defaults."""
    path = render(
        pair,
        options={"x265-params": "log-level=none"} if pair.startswith("hevc") else {},
        container_options={"movflags": "frag_keyframe+empty_moov"} if "frag" in pair else {},
        times=lambda index: index + 50 * (index >= pause),
    )
    facts = probe_video(str(path))
    assert facts.frames == FRAMES
    assert facts.duration_seconds == pytest.approx(9.0)
    assert shown(path) == list(range(FRAMES))
    assert decode_every_frame(path).pts_seconds[-1] == pytest.approx(8.9)


def test_a_declared_duration_that_is_too_short(
    render: Callable[..., Path], shown: Callable[[Path], list[int]]
) -> None:
    path = render("h264.mp4", times=lambda index: index + 50 * (index >= 20))
    data = bytearray(path.read_bytes())
    for box, offset in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):  # version 0
        at = data.index(box) + offset
        short = int.from_bytes(data[at : at + 4], "big") // 3
        data[at : at + 4] = short.to_bytes(4, "big")
    data[data.index(b"edts") : data.index(b"edts") + 4] = b"free"
    path.write_bytes(data)
    assert probe_video(str(path)).duration_seconds == pytest.approx(9.0)
    assert shown(path) == list(range(FRAMES))


def test_a_file_without_presentation_times(
    render: Callable[..., Path], shown: Callable[[Path], list[int]]
) -> None:
    """MP4 whose table of display offsets is lost: the decoder alone knows the order."""
    path = render("h264.mp4")
    path.write_bytes(path.read_bytes().replace(b"ctts", b"free").replace(b"edts", b"free"))
    assert shown(path) == list(range(FRAMES))
    few = decode_video(str(path), num_frames=7, size=SIZE)
    every = decode_every_frame(path)
    places = [every.pts_seconds.index(seconds) for seconds in few.pts_seconds]
    np.testing.assert_array_equal(few.frames, every.frames[places])


def mux(path: Path, *sources: Path, default: int | None = None) -> Path:
    """The first video streams of several files in one; `default` is the one that is marked so."""
    files = [av.open(str(source)) for source in sources]
    with av.open(str(path), "w") as target:
        streams = [target.add_stream_from_template(file.streams.video[0]) for file in files]
        for number, stream in enumerate(streams):
            stream.disposition = Disposition.default if number == default else Disposition(0)
        for file, stream in zip(files, streams, strict=True):
            for packet in file.demux(video=0):
                if packet.dts is not None or packet.pts is not None:
                    packet.stream = stream
                    target.mux(packet)
    for file in files:
        file.close()
    return path


@pytest.mark.parametrize(
    ("default", "chosen"),
    [(0, 1), (1, 2), (None, 2)],  # of two that are not marked, the larger one
)
def test_the_stream_that_a_player_shows(
    render: Callable[..., Path],
    shown: Callable[[Path], list[int]],
    tmp_path: Path,
    default: int | None,
    chosen: int,
) -> None:
    preview = render("h264.mkv", name="preview.mkv", width=48, height=48, frames=20, first=100)
    film = render("h264.mkv")
    path = mux(tmp_path / "two.mkv", preview, film, default=default)
    facts = probe_video(str(path))
    assert (facts.video_stream, facts.video_streams) == (chosen, 2)
    assert shown(path) == (list(range(40)) if chosen == 2 else list(range(100, 120)))


@pytest.mark.parametrize("suffix", ["mkv", "mov"])
@pytest.mark.parametrize("default", [0, None])
def test_a_picture_is_no_film(
    render: Callable[..., Path],
    shown: Callable[[Path], list[int]],
    tmp_path: Path,
    suffix: str,
    default: int | None,
) -> None:
    """A cover in front, larger than the film, that nothing but its codec and length gives away."""
    cover = render("mjpeg.mkv", name="cover.mkv", width=192, height=192, frames=1)
    path = mux(tmp_path / f"film.{suffix}", cover, render("h264.mp4"), default=default)
    assert probe_video(str(path)).video_stream == 2
    assert shown(path) == list(range(FRAMES))


def test_hidden_frames_in_packets_of_their_own(
    shown: Callable[[Path], list[int]], tmp_path: Path
) -> None:
    """VP9 whose superframes were split, as some recorders write it."""
    path, packets = tmp_path / "split.webm", 0
    with av.open(str(DATA / "vp9_hidden.webm")) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        split = BitStreamFilterContext("vp9_superframe_split", source.streams.video[0])
        for whole in source.demux(video=0):
            for packet in split.filter(whole if whole.size else None):
                packet.stream, packets = stream, packets + 1
                target.mux(packet)
    assert packets > FRAMES
    for film in (path, DATA / "vp9_hidden.webm"):
        assert probe_video(str(film)).frames == FRAMES
        assert shown(film) == list(range(FRAMES))


@pytest.mark.parametrize("pair", ["h264.h264", "hevc.hevc"])
def test_a_raw_stream_has_its_own_frame_rate(
    render: Callable[..., Path], shown: Callable[[Path], list[int]], pair: str
) -> None:
    path = render(pair)
    facts = probe_video(str(path))
    assert (facts.frames, facts.fps, facts.duration_seconds) == pytest.approx((40, 10, 4))
    assert shown(path) == list(range(FRAMES))


def test_a_raw_stream_without_a_frame_rate(render: Callable[..., Path]) -> None:
    path = render("mjpeg.mjpeg", container="mjpeg")
    with pytest.raises(VideoError, match=r"wrap it: ffmpeg -framerate RATE -i .*\.mjpeg") as error:
        probe_video(str(path))
    assert error.value.reason == "no_timestamps"


class Pipe(io.RawIOBase):
    """What can be written once, from front to back."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)


def through_a_pipe(source_path: Path, path: Path) -> Path:
    pipe = Pipe()
    with (
        av.open(str(source_path)) as source,
        av.open(pipe, "w", format=path.suffix[1:]) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(pipe.data)
    return path


def test_avi_from_a_pipe(
    render: Callable[..., Path], shown: Callable[[Path], list[int]], tmp_path: Path
) -> None:
    path = through_a_pipe(render("mpeg4.avi"), tmp_path / "piped.avi")
    data = path.read_bytes()
    assert data[4:8] == b"\xff" * 4
    facts = probe_video(str(path))
    assert (facts.frames, facts.duration_seconds) == pytest.approx((40, 4.0))
    assert shown(path) == list(range(FRAMES))
    path.write_bytes(data[: data.index(b"movi") + 2000])
    with pytest.raises(VideoError) as error:
        probe_video(str(path))
    assert error.value.reason == "missing_frames"


@pytest.mark.parametrize("lost", ["the index", "half of the index"])
def test_avi_that_lost_only_its_index(
    render: Callable[..., Path], shown: Callable[[Path], list[int]], lost: str
) -> None:
    path = render("mpeg4.avi")
    data = path.read_bytes()
    at = data.index(b"idx1")
    path.write_bytes(data[: at if lost == "the index" else (at + len(data)) // 2])
    assert shown(path) == list(range(FRAMES))


@pytest.mark.parametrize("pair", ["h264.mkv", "mpeg4.mkv", "vp9.webm", "hevc.mkv"])
@pytest.mark.parametrize("shift", [-3, -25])
def test_matroska_with_times_before_zero(
    render: Callable[..., Path], shown: Callable[[Path], list[int]], pair: str, shift: int
) -> None:
    path = render(pair, shift=shift, container_options={"avoid_negative_ts": "disabled"})
    assert probe_video(str(path)).duration_seconds == pytest.approx(4.0)
    assert shown(path) == list(range(FRAMES))
    assert decode_every_frame(path).pts_seconds == pytest.approx([n / 10 for n in range(40)])


def test_two_frames_at_one_time_are_refused(render: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "twice.mkv"
    with av.open(str(render("h264.mkv"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        assert isinstance(stream, VideoStream)
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.dts = number * 100 - 1000
                packet.pts = 1500 if packet.pts == 1600 else packet.pts
                packet.stream, packet.time_base = stream, Fraction(1, 1000)
                target.mux(packet)
    with pytest.raises(VideoError, match="two frames are shown at the same time") as error:
        probe_video(str(path))
    assert error.value.reason == "wrong_frames"
