import io

import av
import numpy as np
import pytest

from fvlm.core.errors import FvlmError
from fvlm.report.movie import CONTROLS, RATE, encode_movie, movie_frames
from fvlm.report.pictures import (
    PAPER,
    attended,
    cell,
    map_scale,
    path_cell,
    prediction_cell,
)
from fvlm.report.view import ClipView
from tests.report.conftest import places


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


def test_every_scene_shows_its_own_frame_passes_and_predictions(view: ClipView) -> None:
    scale, fine = map_scale(view), view.passes["fine"]
    for t, scene in list(enumerate(movie_frames(view, "clip")))[1:]:  # frame 1 has none before it
        grid = [
            [
                cell(view.frames[t]),
                attended(view, "coarse", t, scale),
                attended(view, "fine", t, scale),
            ],
            [cell(view.decoded[name][t]) for name in ("actual", "coarse", "fine")],
            [
                prediction_cell(view, "persistence", t)[0],
                path_cell(view, fine, until=t),
                attended(view, "autoregressive", t, scale),
            ],
        ]
        found = [[places(np.asarray(picture), scene) for picture in row] for row in grid]
        corners = [[row[column][0] for column in range(3)] for row in found if all(row)]
        assert len(corners) == 3, f"frame {t + 1}"
        assert [sorted(row) for row in corners] == corners, "from left to right"
        assert [len({y for _, y in row}) for row in corners] == [1, 1, 1]
        assert len({x for row in corners for x, _ in row}) == 3


def test_players_have_room_for_their_controls(view: ClipView) -> None:
    for scene in movie_frames(view, "clip"):
        assert (scene[-CONTROLS:] == PAPER).all()
        assert scene.shape[1] * 80 / 368 <= CONTROLS  # 80 pixels on a phone 400 pixels wide


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
