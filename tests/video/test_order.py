"""Every frame as a player shows it: pictures that carry their number tell which frame is stored."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from fvlm.core.errors import VideoError
from fvlm.video.decode import DecodedClip, decode_video
from fvlm.video.probe import probe_video

Film = Callable[..., Path]
Every = Callable[[Path], DecodedClip]
Shown = Callable[[Path], list[int]]
FRAMES, SIZE = 40, 96
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


def as_ffmpeg_shows(path: Path) -> np.ndarray:
    """Every frame that the ffmpeg command decodes, in its order: uint8 [T, 3, SIZE, SIZE]."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-fps_mode", "passthrough", "-vf"]
    command += [f"scale={SIZE}:{SIZE}", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, SIZE, SIZE, 3).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("pair", PAIRS)
def test_frames_come_in_playing_order(
    every_frame: Every,
    render: Film,
    numbers_of: Callable[[np.ndarray], list[int]],
    pair: str,
) -> None:
    path = render(pair)
    clip = every_frame(path)
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
    render: Film,
    shown: Shown,
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
def test_joined_files_of_other_kinds_are_refused(
    every_frame: Every, render: Film, pair: str
) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if "frag" in pair else {}
    parts = [
        render(pair, frames=20, first=first, name=f"{first}.{pair}", container_options=options)
        for first in (0, 20)
    ]
    path = parts[0]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(VideoError) as error:
        every_frame(path)
    assert error.value.reason == "wrong_frames"


@pytest.mark.parametrize("pair", ["h264.mp4", "h264.mov", "hevc.mov", "hevc.mp4", "h264.frag.mp4"])
@pytest.mark.parametrize("pause", [20, 37, 39])
def test_a_pause_lasts_as_long_as_it_does(
    every_frame: Every, render: Film, shown: Shown, pair: str, pause: int
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
    assert every_frame(path).pts_seconds[-1] == pytest.approx(8.9)


def test_a_declared_duration_that_is_too_short(render: Film, shown: Shown) -> None:
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


def test_a_file_without_presentation_times(every_frame: Every, render: Film, shown: Shown) -> None:
    """MP4 whose table of display offsets is lost: the decoder alone knows the order."""
    path = render("h264.mp4")
    path.write_bytes(path.read_bytes().replace(b"ctts", b"free").replace(b"edts", b"free"))
    assert shown(path) == list(range(FRAMES))
    every = every_frame(path)
    for num_frames in (1, 2, 3, 4, 5, 7):  # that the fast way must not take what it has skipped
        few = decode_video(str(path), num_frames=num_frames, size=SIZE)
        places = [every.pts_seconds.index(seconds) for seconds in few.pts_seconds]
        np.testing.assert_array_equal(few.frames, every.frames[places])


def test_a_clock_that_starts_again_between_the_frames(render: Film) -> None:
    """No two frames share a time, but twice as many are shown in a second."""
    parts = [
        render("h264.mkv", name=f"{late}.mkv", fps=20, times=lambda n, late=late: 2 * n + late)
        for late in (0, 1)
    ]
    path = parts[0]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(VideoError, match="the clock starts again") as error:
        probe_video(str(path))
    assert error.value.reason == "wrong_frames"


def test_a_recording_joined_in_the_middle_of_a_group(
    render: Film, tmp_path: Path, numbers_of: Callable[[np.ndarray], list[int]]
) -> None:
    """Frames that refer to what was cut away must not be decoded from the recording before."""
    options = {
        "preset": "ultrafast",
        "g": "12",
        "x265-params": "log-level=none:bframes=4:open-gop=1",
    }
    whole = render("hevc.ts", options=options, first=100)
    cut = tmp_path / "cut.ts"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for place, packet in enumerate(source.demux(video=0)):
            if packet.size and place >= 5:
                packet.stream = stream
                target.mux(packet)
    path = render("hevc.ts", options=options, name="joined.ts", frames=20)
    path.write_bytes(path.read_bytes() + cut.read_bytes())
    clip = decode_video(str(path), num_frames=40, size=SIZE)
    found = numbers_of(clip.frames)
    offsets = [
        number - round(10 * seconds)
        for number, seconds in zip(found, clip.pts_seconds, strict=True)
    ]
    before = sum(number < 100 for number in found)
    assert set(offsets[:before]) == {0}
    assert len(set(offsets[before:])) == 1
    assert found == sorted(found)
