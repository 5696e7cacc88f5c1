import io

import av
import numpy as np
import pytest

from fvlm.errors import FvlmError
from fvlm.report.movie import RATE, encode_movie, movie_frames
from fvlm.report.view import ClipView


def test_a_film_shows_every_frame_and_can_be_decoded(view: ClipView) -> None:
    scenes = list(movie_frames(view, "clip"))
    content = encode_movie(scenes)
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == RATE
        assert stream.codec_context.pix_fmt == "yuv420p"  # what browsers play
        assert isinstance(container, av.container.InputContainer)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == len(view.frames) == len(scenes)
    for shown, expected in zip(decoded, scenes, strict=True):
        assert shown.shape == expected.shape
        assert np.abs(shown.astype(float) - expected).mean() < 12
    assert all(size % 2 == 0 for size in scenes[0].shape[:2])


def test_the_same_frames_give_the_same_bytes(view: ClipView) -> None:
    first, again = (encode_movie(movie_frames(view, "clip")) for _ in range(2))
    assert first == again
    assert b"mbtree=1" not in first  # see X264: it would now and then give other bytes


def test_h264_where_it_can_be_had(view: ClipView) -> None:
    content = encode_movie(movie_frames(view, "clip"))
    with av.open(io.BytesIO(content)) as container:
        found = container.streams.video[0].codec_context.name
    assert found == "h264" or "libx264" not in av.codecs_available


def test_without_any_encoder_the_message_says_so(
    view: ClipView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av, "codecs_available", set())
    with pytest.raises(FvlmError, match="encodes none of libx264"):
        encode_movie(movie_frames(view, "clip"))
