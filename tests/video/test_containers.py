"""Files that are odd and complete: which stream, which frames, and when they are shown."""

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition
from av.video.stream import VideoStream

from fvlm.core.errors import VideoError
from fvlm.video.decode import DecodedClip
from fvlm.video.probe import probe_video

Film = Callable[..., Path]
Every = Callable[[Path], DecodedClip]
Shown = Callable[[Path], list[int]]
DATA = Path(__file__).parent / "data"
FRAMES = 40


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
    render: Film,
    shown: Shown,
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
    render: Film,
    shown: Shown,
    tmp_path: Path,
    suffix: str,
    default: int | None,
) -> None:
    """A cover in front, larger than the film, that nothing but its codec and length gives away."""
    cover = render("mjpeg.mkv", name="cover.mkv", width=192, height=192, frames=1)
    path = mux(tmp_path / f"film.{suffix}", cover, render("h264.mp4"), default=default)
    assert probe_video(str(path)).video_stream == 2
    assert shown(path) == list(range(FRAMES))


def test_hidden_frames_in_packets_of_their_own(shown: Shown, tmp_path: Path) -> None:
    """VP9 whose superframes were split, as some recorders write it."""
    path, packets = tmp_path / "split.webm", 0
    options = {"fflags": "-autobsf"}  # or the muxer joins them again
    with (
        av.open(str(DATA / "vp9_hidden.webm")) as source,
        av.open(str(path), "w", options=options) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        split = BitStreamFilterContext("vp9_superframe_split", source.streams.video[0])
        for whole in source.demux(video=0):
            for packet in split.filter(whole if whole.size else None):
                packet.stream, packets = stream, packets + 1
                target.mux(packet)
    with av.open(str(path)) as split_film:
        assert sum(packet.size > 0 for packet in split_film.demux(video=0)) == packets > FRAMES
    for film in (path, DATA / "vp9_hidden.webm"):
        assert probe_video(str(film)).frames == FRAMES
        assert shown(film) == list(range(FRAMES))


@pytest.mark.parametrize("pair", ["h264.h264", "hevc.hevc"])
def test_a_raw_stream_has_its_own_frame_rate(render: Film, shown: Shown, pair: str) -> None:
    path = render(pair)
    facts = probe_video(str(path))
    assert (facts.frames, facts.fps, facts.duration_seconds) == pytest.approx((40, 10, 4))
    assert shown(path) == list(range(FRAMES))


def test_a_raw_stream_without_a_frame_rate(render: Film) -> None:
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


def test_avi_from_a_pipe(render: Film, shown: Shown, tmp_path: Path) -> None:
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
def test_avi_that_lost_only_its_index(render: Film, shown: Shown, lost: str) -> None:
    path = render("mpeg4.avi")
    data = path.read_bytes()
    at = data.index(b"idx1")
    path.write_bytes(data[: at if lost == "the index" else (at + len(data)) // 2])
    assert shown(path) == list(range(FRAMES))


@pytest.mark.parametrize("pair", ["h264.mkv", "mpeg4.mkv", "vp9.webm", "hevc.mkv"])
@pytest.mark.parametrize("shift", [-3, -25])
def test_matroska_with_times_before_zero(
    every_frame: Every, render: Film, shown: Shown, pair: str, shift: int
) -> None:
    path = render(pair, shift=shift, container_options={"avoid_negative_ts": "disabled"})
    assert probe_video(str(path)).duration_seconds == pytest.approx(4.0)
    assert shown(path) == list(range(FRAMES))
    assert every_frame(path).pts_seconds == pytest.approx([n / 10 for n in range(40)])


def test_two_frames_at_one_time_are_refused(render: Film, tmp_path: Path) -> None:
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
