"""Clips hold exactly the film's frames, start at zero, and are the same bytes every time."""

from pathlib import Path

import av
import numpy as np
import pytest

from fvlm.core.errors import SourceError
from fvlm.corpus.cut import cut_film


def decode(path: Path) -> tuple[list[float | None], list[np.ndarray]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.time for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


def test_clips_hold_the_films_frames(film: Path, tmp_path: Path) -> None:
    targets = [tmp_path / f"{number}.mp4" for number in range(3)]
    cut_film(film, starts=[0, 24, 72], targets=targets)
    clips = [decode(target) for target in targets]
    assert [len(times) for times, _ in clips] == [24, 48, 24]
    for times, _ in clips:
        assert times == pytest.approx(np.arange(len(times)) / 24)
    whole = decode(film)[1]
    assert np.array_equal(np.concatenate([pictures for _, pictures in clips]), whole)


def test_no_packet_is_discarded_and_frames_are_declared(film: Path, tmp_path: Path) -> None:
    cut_film(film, starts=[48], targets=[tmp_path / "clip.mp4"])
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert stream.frames == len(packets) == 48
        assert not any(packet.is_discard for packet in packets)


def test_same_bytes_every_time(film: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        cut_film(film, starts=[24], targets=[tmp_path / name])
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_cutting_between_keyframes_is_refused(film: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="frame 30 of the film is not a keyframe"):
        cut_film(film, starts=[0, 30], targets=[tmp_path / "a.mp4", tmp_path / "b.mp4"])
