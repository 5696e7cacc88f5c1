"""Facts about videos, and a typed reason for everything that is none."""

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from fvlm.core.errors import VideoError
from fvlm.video.container import MAX_PIXELS
from fvlm.video.probe import probe_request, probe_video


def reason(path: Path) -> str:
    with pytest.raises(VideoError) as error:
        probe_video(str(path))
    return error.value.reason


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("h264_b.mp4", "h264", "mp4"),
        ("h264_fragmented.mp4", "h264", "mp4"),
        ("h264_pyramid.mkv", "h264", "mkv"),
        ("h264.ts", "h264", "mpegts"),
        ("h264.flv", "h264", "flv"),
        ("hevc_open_gop.mp4", "hevc", "mp4"),
        ("vp8.webm", "vp8", "webm"),
        ("vp9.webm", "vp9", "webm"),
        ("av1.mp4", "av1", "mp4"),
        ("mpeg4_b.mp4", "mpeg4", "mp4"),
        ("mpeg2_b.mpg", "mpeg2video", "mpeg"),
        ("mjpeg.avi", "mjpeg", "avi"),
    ],
)
def test_facts(videos: dict[str, Path], name: str, codec: str, container: str) -> None:
    facts = probe_video(str(videos[name]))
    assert (facts.codec, facts.container) == (codec, container)
    assert facts.frames == 100
    assert facts.duration_seconds == pytest.approx(4, abs=0.002)
    assert facts.fps == pytest.approx(25, abs=0.02)
    assert (facts.width, facts.height, facts.rotation) == (160, 120, 0)


def test_size_is_the_turned_one(videos: dict[str, Path]) -> None:
    facts = probe_video(str(videos["h264_turned.mp4"]))
    assert (facts.width, facts.height, facts.rotation) == (120, 160, 90)


def test_an_edit_list_hides_frames(videos: dict[str, Path]) -> None:
    facts = probe_video(str(videos["h264_edit_list.mp4"]))
    assert facts.frames == 60
    assert facts.duration_seconds == pytest.approx(2.4)


def test_duration_runs_from_the_first_frame(videos: dict[str, Path]) -> None:
    assert probe_video(str(videos["h264_late_start.mp4"])).duration_seconds == pytest.approx(4)


def test_variable_frame_rate_counts_frames_as_they_are(videos: dict[str, Path]) -> None:
    for name in ("h264_vfr.mp4", "h264_vfr.mkv"):
        facts = probe_video(str(videos[name]))
        assert facts.frames == 100
        last = (99 * 3 + 1 + 50) / 25
        assert last < facts.duration_seconds < last + 0.5


@pytest.mark.parametrize(
    "name",
    [
        "naïve — 日本語 🎬.mp4",
        "new\nline.mp4",
        "a.b..c.tar.mp4",
        "-dash.mp4",
        "concat:a|b.mp4",
        "http:x.mp4",
        "n" * 251 + ".mp4",
        os.fsdecode(b"not utf-8 \xff\xfe.mp4"),
        " .mp4",
    ],
)
def test_any_name_will_do(videos: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(videos["h264_b.mp4"].read_bytes())
    assert probe_video(str(path)).frames == 100


def test_case_only_twins(videos: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(videos["h264_b.mp4"].read_bytes())
    (tmp_path / "CLIP.mp4").write_bytes(videos["h264_edit_list.mp4"].read_bytes())
    frames = {probe_video(str(path)).frames for path in tmp_path.iterdir()}
    assert frames == {100, 60}


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "gone.mp4").symlink_to("nothing.mp4")
    for path in ("fifo.mp4", "loop.mp4", "gone.mp4", "nothing.mp4", "."):
        assert reason(tmp_path / path) == "not_a_file"
    assert reason(Path("/dev/zero")) == "not_a_file"
    assert reason(tmp_path / "zero\0byte.mp4") == "not_a_file"


def test_what_is_not_a_video(tmp_path: Path) -> None:
    contents = {
        "empty.mp4": (b"", "empty_file"),
        "page.mp4": (b"<!DOCTYPE html><html><body>404 not found</body></html>" * 50, "unreadable"),
        "noise.mp4": (np.random.default_rng(0).bytes(50_000), "unreadable"),
        "zeros.mp4": (bytes(50_000), "unreadable"),
        "one_byte.mp4": (b"\0", "unreadable"),
    }
    for name, (content, expected) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert reason(tmp_path / name) == expected, name
        if expected == "unreadable":
            with pytest.raises(VideoError, match=r"\.mp4 is not a video file, or its beginning is"):
                probe_video(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["mp3", "wav", "flac"])
def test_sound_that_is_named_like_a_video(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream({"wav": "pcm_s16le"}.get(kind, kind), rate=44100)
        assert isinstance(stream, av.AudioStream)
        for start in range(0, 44100, 1152):
            samples = np.zeros((1, 2304), np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
            frame.sample_rate, frame.pts = 44100, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="holds sound only") as error:
        probe_video(str(path))
    assert error.value.reason == "no_video_stream"


def test_no_moov(videos: dict[str, Path], tmp_path: Path) -> None:
    data = videos["h264_b.mp4"].read_bytes()
    path = tmp_path / "no_moov.mp4"
    path.write_bytes(data[: data.index(b"moov") - 4])
    assert reason(path) in ("unreadable", "missing_frames")


def test_truncated(videos: dict[str, Path], tmp_path: Path) -> None:
    for name in ("h264_pyramid.mkv", "vp9.webm", "mpeg4.avi", "h264_fragmented.mp4"):
        data = videos[name].read_bytes()
        path = tmp_path / name
        path.write_bytes(data[: len(data) * 6 // 10])
        assert reason(path) == "missing_frames", name


@pytest.mark.parametrize("picture", [False, True])
def test_audio_only_and_attached_picture(tmp_path: Path, picture: bool) -> None:
    path = tmp_path / "audio.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), "fltp", "stereo")
        frame.sample_rate = 44100
        if picture:
            cover = container.add_stream("mjpeg", rate=25)
            assert isinstance(cover, VideoStream)
            cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
            cover.disposition = Disposition.attached_pic
            container.mux([*cover.encode(VideoFrame(64, 64, "yuvj420p")), *cover.encode(None)])
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert reason(path) == "no_video_stream"


def test_encrypted(tmp_path: Path) -> None:
    path = tmp_path / "encrypted.mp4"
    key = "00112233445566778899aabbccddeeff"
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for seed in range(10):
            noise = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
            container.mux(stream.encode(VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode(None))
    assert reason(path) == "decode_error"


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.sdp", "frame%d.png"])
def test_a_file_that_names_other_files(videos: dict[str, Path], tmp_path: Path, name: str) -> None:
    """What is read must be what was hashed; for FFmpeg each of these is a playable list."""
    (tmp_path / "other.ts").write_bytes(videos["h264.ts"].read_bytes())
    VideoFrame(64, 64, "rgb24").save(str(tmp_path / "frame1.png"))
    texts = {
        "list.mp4": "ffconcat version 1.0\nfile other.ts\n",
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nother.ts\n#EXT-X-ENDLIST\n",
        "list.sdp": "v=0\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        "frame%d.png": "the name is a pattern",
    }
    (tmp_path / name).write_text(texts[name])
    with pytest.raises(VideoError, match="playlist") as error:
        probe_video(str(tmp_path / name))
    assert error.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mjpeg.mkv", {}),
        ("mjpeg.mp4", {}),
        ("libx264.mp4", {"preset": "ultrafast"}),
        ("libvpx.webm", {"deadline": "realtime", "cpu-used": "16"}),
    ],
)
def test_a_picture_that_is_too_large(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = tmp_path / name
    width, height = 8192, MAX_PIXELS // 8192 + 16
    pixel_format = "yuvj420p" if path.stem == "mjpeg" else "yuv420p"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(path.stem, rate=25, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        frame = VideoFrame(width, height, pixel_format)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert reason(path) == "too_many_pixels"


def test_request_adds_the_content_hash(videos: dict[str, Path]) -> None:
    request = {"path": str(videos["h264_b.mp4"])}
    facts = probe_request(request)
    assert facts["frames"] == 100
    assert len(facts["sha256"]) == 64
    assert facts == probe_request(request)


def test_probing_needs_no_heavy_library() -> None:
    code = "import sys, fvlm.video.probe; print('torch' in sys.modules)"
    folder = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
