"""Structure checks: clean files pass, every lost or inserted byte in the middle shows."""

from pathlib import Path

import pytest

from fvlm.core.errors import VideoError
from fvlm.video.structure import check_structure

KINDS = {".mp4": "mp4", ".mkv": "mkv", ".webm": "webm", ".avi": "avi"}


def test_clean_files_pass(videos: dict[str, Path]) -> None:
    for name, path in videos.items():
        check_structure(str(path), KINDS.get(path.suffix, "other"))
        assert name


@pytest.mark.parametrize("name", ["h264_pyramid.mkv", "vp9.webm", "mjpeg.avi"])
def test_lost_and_inserted_bytes_show(videos: dict[str, Path], tmp_path: Path, name: str) -> None:
    data = videos[name].read_bytes()
    path = tmp_path / name
    for tenth in range(3, 9):
        place = len(data) * tenth // 10
        for damaged in (data[:place] + data[place + 3 :], data[:place] + b"xyz" + data[place:]):
            path.write_bytes(damaged)
            with pytest.raises(VideoError) as error:
                check_structure(str(path), KINDS[path.suffix])
            assert error.value.reason in ("missing_frames", "wrong_frames")


@pytest.mark.parametrize("name", ["h264_b.mp4", "h264_pyramid.mkv", "vp9.webm", "mjpeg.avi"])
def test_every_truncation_shows(videos: dict[str, Path], tmp_path: Path, name: str) -> None:
    data = videos[name].read_bytes()
    path = tmp_path / name
    for end in range(len(data) // 10, len(data) - 64, len(data) // 37):
        path.write_bytes(data[:end])
        if path.suffix == ".mp4" and end <= data.index(b"mdat") - 4:
            continue  # cut exactly between two boxes
        if path.suffix == ".avi" and end >= data.index(b"idx1"):
            check_structure(str(path), "avi")  # every frame is there
            continue
        with pytest.raises(VideoError) as error:
            check_structure(str(path), KINDS[path.suffix])
        assert error.value.reason in ("missing_frames", "wrong_frames")


def test_only_what_follows_a_complete_film_was_appended(
    videos: dict[str, Path], tmp_path: Path
) -> None:
    """A film in fragments would go on there; a lost end is another box of frames."""
    path = tmp_path / "clip.mp4"
    noise, more = bytes(range(128, 256)), (1000).to_bytes(4, "big") + b"mdat"
    path.write_bytes(videos["h264_b.mp4"].read_bytes() + noise)
    check_structure(str(path), "mp4")
    for name, tail in (("h264_fragmented.mp4", noise), ("h264_b.mp4", more)):
        path.write_bytes(videos[name].read_bytes() + tail)
        with pytest.raises(VideoError) as error:
            check_structure(str(path), "mp4")
        assert error.value.reason in ("missing_frames", "wrong_frames")


def test_a_checksum_finds_any_flipped_bit(videos: dict[str, Path], tmp_path: Path) -> None:
    data = videos["h264_pyramid.mkv"].read_bytes()
    path = tmp_path / "flipped.mkv"
    found = 0
    places = range(len(data) // 4, len(data) - 100, len(data) // 50)
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 16
        path.write_bytes(damaged)
        try:
            check_structure(str(path), "mkv")
        except VideoError:
            found += 1
    assert found >= 0.9 * len(places)
