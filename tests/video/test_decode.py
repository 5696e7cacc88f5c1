"""Decoding: the right pictures, the same ones by either way, and errors for anything else."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from fvlm.core.errors import VideoError
from fvlm.video import decode
from fvlm.video.clips import DecodeParams
from fvlm.video.container import TOLERANT
from fvlm.video.decode import DecodedClip, decode_request, decode_video
from fvlm.video.geometry import FrameConverter
from fvlm.video.worker import Outcome, map_isolated

Picture = Callable[[int, int, int], np.ndarray]

NUM_FRAMES, SIZE = 12, 48
FAST = [
    "h264_b.mp4",
    "h264_no_b.mp4",
    "h264_pyramid.mkv",
    "h264_open_gop.mp4",
    "h264_vfr.mp4",
    "h264_vfr.mkv",
    "h264_edit_list.mp4",
    "h264_late_start.mp4",
    "h264_fragmented.mp4",
    "h264_10_bit.mp4",
    "h264_hdr.mp4",
    "h264_444_odd.mp4",
    "h264_turned.mp4",
    "h264_wide_pixels.mp4",
    "h264_one_pixel.mp4",
    "hevc_open_gop.mp4",
    "hevc.mkv",
    "vp8.webm",
    "vp9.webm",
    "vp9.mp4",
    "av1.mp4",
    "av1.mkv",
    "mpeg4_b.mp4",
    "mpeg4.avi",
    "mpeg2.mkv",
    "mpeg2.ts",
    "mpeg2_b.mpg",
    "mjpeg.avi",
    "mjpeg.mkv",
]
SEQUENTIAL = [
    "h264_intra_refresh.mp4",  # keyframes that show only part of the picture
    "h264.ts",
    "h264.flv",
    "msmpeg4.avi",
    "ffv1.mkv",
]


def by_either_way(
    path: Path, monkeypatch: pytest.MonkeyPatch, num_frames: int
) -> tuple[DecodedClip, DecodedClip, bool]:
    """The clip decoded fast, the clip decoded from start to end, and whether fast was possible."""
    ways = []
    fast = decode.decode_fast

    def remember(*args: object) -> object:
        ways.append(fast(*args))  # type: ignore[arg-type]
        return ways[-1]

    with monkeypatch.context() as patch:
        patch.setattr(decode, "decode_fast", remember)
        quick = decode_video(str(path), num_frames=num_frames, size=SIZE)
        patch.setattr(decode, "decode_fast", lambda *_: None)
        slow = decode_video(str(path), num_frames=num_frames, size=SIZE)
    return quick, slow, bool(ways and ways[0] is not None)


@pytest.mark.parametrize("num_frames", [1, 5, 24])
@pytest.mark.parametrize("name", FAST)
def test_fast_equals_sequential(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str, num_frames: int
) -> None:
    fast, sequential, was_fast = by_either_way(videos[name], monkeypatch, num_frames)
    assert was_fast, "the fast way gave up"
    np.testing.assert_array_equal(fast.frames, sequential.frames)
    assert fast.pts_seconds == sequential.pts_seconds
    assert fast.frames.shape == (num_frames, 3, SIZE, SIZE)
    assert fast.frames.dtype == np.uint8
    assert fast.frames.flags.c_contiguous


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_what_is_not_known_to_be_exact_is_decoded_from_the_start(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    *_, was_fast = by_either_way(videos[name], monkeypatch, NUM_FRAMES)
    assert not was_fast


def test_partial_keyframes_are_decoded_from_the_start(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = videos["h264_intra_refresh.mp4"]
    fast, sequential, _ = by_either_way(path, monkeypatch, 24)
    np.testing.assert_array_equal(fast.frames, sequential.frames)


@pytest.mark.parametrize("name", [*FAST, *SEQUENTIAL])
def test_pictures_are_those_of_a_plain_loop(videos: dict[str, Path], name: str) -> None:
    """An independent decode of every frame, found by its time, gives the same pixels."""
    clip = decode_video(str(videos[name]), num_frames=NUM_FRAMES, size=SIZE)
    with av.open(str(videos[name])) as container:
        aspect = container.streams.video[0].sample_aspect_ratio
        frames = [frame for frame in container.decode(video=0) if frame.pts is not None]
    start, base = min(frame.pts or 0 for frame in frames), frames[0].time_base or 1
    times = {float(((frame.pts or 0) - start) * base): frame for frame in frames}
    converter = FrameConverter(SIZE, aspect)
    for pts_seconds, stored in zip(clip.pts_seconds, clip.frames, strict=True):
        expected = converter.convert(times[pts_seconds])
        np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize("name", ["h264_b.mp4", "vp9.webm", "mpeg4.avi", "h264.ts", "av1.mp4"])
def test_pictures_are_the_rendered_ones(
    videos: dict[str, Path], rendered_picture: Picture, name: str
) -> None:
    clip = decode_video(str(videos[name]), num_frames=NUM_FRAMES, size=120)
    for pts_seconds, stored in zip(clip.pts_seconds, clip.frames, strict=True):
        index = round(pts_seconds * 25)
        expected = rendered_picture(index, 160, 120)[:, 20:140]
        error = np.abs(stored.transpose(1, 2, 0).astype(int) - expected).mean()
        others = rendered_picture(index + 3, 160, 120)[:, 20:140]
        assert error < 20
        assert error < np.abs(stored.transpose(1, 2, 0).astype(int) - others).mean() / 2


def test_times_are_spread_over_the_whole_clip(videos: dict[str, Path]) -> None:
    clip = decode_video(str(videos["h264_b.mp4"]), num_frames=4, size=8)
    assert clip.pts_seconds == pytest.approx([0.48, 1.48, 2.48, 3.48])  # on display at 0.5, ...


def test_rotation_turns_clockwise(videos: dict[str, Path]) -> None:
    upright = decode_video(str(videos["h264_b.mp4"]), num_frames=2, size=40).frames
    for name, turns in (("turned", 1), ("upside_down", 2), ("turned_left", 3)):
        turned = decode_video(str(videos[f"h264_{name}.mp4"]), num_frames=2, size=40).frames
        expected = np.rot90(upright, k=-turns, axes=(2, 3)).astype(int)
        assert np.abs(turned - expected).mean() < 6, name  # encoded with other options


def test_hdr_keeps_its_transfer_curve(videos: dict[str, Path]) -> None:
    """No tone mapping: the code values of an HDR file come out as those of its SDR twin."""
    with av.open(str(videos["h264_hdr.mp4"])) as container:
        assert container.streams.video[0].codec_context.color_trc == 16  # SMPTE ST 2084
    hdr = decode_video(str(videos["h264_hdr.mp4"]), num_frames=4, size=40).frames
    sdr = decode_video(str(videos["h264_10_bit.mp4"]), num_frames=4, size=40).frames
    assert np.abs(hdr.astype(int) - sdr).mean() < 12  # another matrix, the same curve


def test_wide_pixels_show_the_centre_of_the_displayed_picture(
    videos: dict[str, Path], rendered_picture: Picture
) -> None:
    clip = decode_video(str(videos["h264_wide_pixels.mp4"]), num_frames=2, size=60)
    index = round(clip.pts_seconds[0] * 25)
    square = rendered_picture(index, 160, 120)[:, 50:110]  # 60 coded pixels are 120 displayed
    expected = square.reshape(60, 2, 60, 3).mean(axis=1)
    assert np.abs(clip.frames[0].transpose(1, 2, 0) - expected).mean() < 12


def test_packets_of_a_large_file_are_read_twice(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = decode_video(str(videos["h264_b.mp4"]), num_frames=8, size=SIZE)
    monkeypatch.setattr("fvlm.video.timeline.HELD_BYTES", 1000)
    read_again = decode_video(str(videos["h264_b.mp4"]), num_frames=8, size=SIZE)
    np.testing.assert_array_equal(held.frames, read_again.frames)


def cut_start(source_path: Path, path: Path, first: int) -> Path:
    """Leave out the packets before the one with number `first`."""
    with av.open(str(source_path)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if number >= first and packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path


@pytest.mark.parametrize("first", [3, 26, 31])
@pytest.mark.parametrize("name", ["h264_open_gop.ts", "hevc_open_gop.mp4", "mpeg2_b.mpg"])
def test_a_recording_that_starts_in_the_middle(
    videos: dict[str, Path], tmp_path: Path, name: str, first: int
) -> None:
    path = cut_start(videos[name], tmp_path / "cut.ts", first)
    clip = decode_video(str(path), num_frames=NUM_FRAMES, size=SIZE)
    assert clip.frames.shape[0] == NUM_FRAMES


def test_too_few_frames(videos: dict[str, Path]) -> None:
    with pytest.raises(VideoError) as error:
        decode_video(str(videos["h264_b.mp4"]), num_frames=101, size=SIZE)
    assert error.value.reason == "too_few_frames"
    assert decode_video(str(videos["h264_b.mp4"]), num_frames=100, size=8).frames.shape[0] == 100


def test_damaged_pictures_are_errors(videos: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(videos["h264_b.mp4"].read_bytes())
    start = len(data) // 2
    data[start : start + 4000] = np.random.default_rng(0).bytes(4000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoError) as error:
        decode_video(str(path), num_frames=24, size=SIZE)
    assert error.value.reason == "decode_error"
    assert re.fullmatch(r"damaged picture at [0-3]\.\d s", str(error.value))


def is_decoded(path: Path) -> bool:
    try:
        decode_video(str(path), num_frames=24, size=SIZE)
    except VideoError:
        return False
    return True


def test_damage_that_decoders_conceal_is_refused(
    videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among single flipped bits there is one for which a player shows some picture."""
    data, path = videos["h264_b.mp4"].read_bytes(), tmp_path / "damaged.mp4"
    for seed in range(80):
        rng, damaged = np.random.default_rng(seed), bytearray(data)
        damaged[int(rng.integers(len(data) // 4, len(data) * 3 // 4))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with monkeypatch.context() as patch:
            patch.setattr(decode, "STRICT", TOLERANT)
            is_concealed = is_decoded(path)
        if is_concealed and not is_decoded(path):
            return
    pytest.fail("what a tolerant decoder shows is never refused")


def test_a_frame_that_the_decoder_marks(videos: dict[str, Path], tmp_path: Path) -> None:
    """A recording cut at both ends: its start is forgiven, an incomplete last picture is not."""
    path = cut_start(videos["h264_open_gop.ts"], tmp_path / "cut.ts", 3)
    data = path.read_bytes()
    messages = set()
    for end in range(len(data) // 2, len(data) * 9 // 10, len(data) // 20):
        path.write_bytes(data[:end])
        try:
            decode_video(str(path), num_frames=NUM_FRAMES, size=SIZE)
        except VideoError as error:
            messages.add(str(error))
    assert any("picture that the decoder marks as damaged at " in message for message in messages)


def test_a_packet_that_the_demuxer_marks(videos: dict[str, Path], tmp_path: Path) -> None:
    data = bytearray(videos["mpeg2.ts"].read_bytes())
    packets = range(0, len(data), 188)
    of_video = [at for at in packets if data[at + 1] & 31 == 1 and data[at + 2] == 0]
    data[of_video[len(of_video) // 2] + 1] |= 128  # transport_error_indicator
    path = tmp_path / "marked.ts"
    path.write_bytes(data)
    with pytest.raises(VideoError, match="a packet is cut short") as error:
        decode_video(str(path), num_frames=NUM_FRAMES, size=SIZE)
    assert error.value.reason == "missing_frames"


def test_what_only_a_message_tells(videos: dict[str, Path], tmp_path: Path) -> None:
    """A block of an unknown track is skipped: a frame is missing although all of them decode."""
    data = bytearray(videos["vp8.webm"].read_bytes())
    with av.open(str(videos["vp8.webm"])) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    data[data.index(packets[50]) - 4] ^= 8  # the block's track number
    path = tmp_path / "skipped.webm"
    path.write_bytes(data)
    assert decode_video(str(path), num_frames=24, size=SIZE).frames.shape[0] == 24
    sha256 = hashlib.sha256(data).hexdigest()
    request = {"path": str(path), "sha256": sha256, "num_frames": 24, "size": SIZE}
    request["clips"] = [[0.0, None]]
    [(_, outcome)] = map_isolated(decode_request, [request])
    assert isinstance(outcome, VideoError)
    assert outcome.reason == "decode_error"
    assert "Invalid track number" in str(outcome)


@pytest.mark.parametrize(
    ("fraction", "videos", "most"),
    [(0.0, 1000, 0), (0.1, 5, 3), (0.1, 3, 2), (0.1, 40, 4), (0.01, 40, 3), (1.0, 3, 3)],
)
def test_how_many_may_fail(fraction: float, videos: int, most: int) -> None:
    params = DecodeParams(
        num_frames=1, frame_size=8, clips_per_shard=1, max_failed_fraction=fraction
    )
    assert params.most_failed(videos) == pytest.approx(most)


def test_request_checks_the_content(videos: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    data = videos["h264_b.mp4"].read_bytes()
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    request = {"path": str(path), "sha256": sha256, "num_frames": 2, "size": 16}
    request["clips"] = [[0.0, None]]
    values, arrays = decode_request(request)
    assert arrays["frames"].shape == (1, 2, 3, 16, 16)
    assert json.dumps(values)
    path.write_bytes(data + b"\0")
    with pytest.raises(VideoError) as error:
        decode_request(request)
    assert error.value.reason == "changed_since_filter"
    path.unlink()
    with pytest.raises(VideoError) as error:
        decode_request(request)
    assert error.value.reason == "not_a_file"


@pytest.mark.parametrize("name", ["h264_b.mp4", "av1.mp4", "mpeg4.avi", "h264_pyramid.mkv"])
def test_appended_bytes_do_no_harm(videos: dict[str, Path], tmp_path: Path, name: str) -> None:
    """As cameras and download tools append them; in the worker, where messages count."""
    tails = {
        "nothing": b"",
        "noise": np.random.default_rng(0).bytes(1000),
        "a tag": b"TAG" + b"Some song".ljust(125),
        "too few bytes for a box": b"xyz",
    }
    for tail, data in tails.items():
        (tmp_path / f"{tail}{Path(name).suffix}").write_bytes(videos[name].read_bytes() + data)
    requests = [{"path": str(path), "num_frames": 4, "size": 16} for path in tmp_path.iterdir()]
    for request in requests:
        request["clips"] = [[0.0, None]]
        request["sha256"] = hashlib.sha256(Path(str(request["path"])).read_bytes()).hexdigest()
    frames = []
    for request, outcome in map_isolated("fvlm.video.decode:decode_request", requests):
        assert isinstance(outcome, Outcome), f"{request['path']}: {outcome}"
        frames.append(outcome.arrays["frames"].tobytes())
    assert len(frames) == len(tails)
    assert len(set(frames)) == 1


def test_decoding_uses_one_thread(videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    names = ("h264_b.mp4", "hevc.mkv", "vp9.webm", "av1.mp4", "mpeg4.avi")
    requests = [{"path": str(videos[name])} for name in names]
    for request, outcome in map_isolated("worker_functions:threads", requests, workers=1):
        assert isinstance(outcome, Outcome), outcome
        assert outcome.values == {"most": 1}, request["path"]


def test_a_printing_decoder_is_heard_where_stderr_is_a_file(tmp_path: Path) -> None:
    """Only in a process whose stderr is a file of its own, such as the worker."""
    code = (
        "import os, sys\n"
        "from fvlm.video.damage import Messages\n"
        "heard = Messages()\n"
        "os.write(2, b'[h264 @ 0x55] concealing 99 DC, 99 AC, 99 MV errors in P frame\\n')\n"
        "print(heard.damage('h264'), Messages().damage('h264'))\n"
    )
    with (tmp_path / "stderr").open("w+") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=Path(__file__).parents[2],
            env=os.environ,
            check=True,
        )
    assert done.stdout == b"concealing 99 DC, 99 AC, 99 MV errors in P frame None\n"
