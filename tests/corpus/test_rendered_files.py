"""Rendered clips are real H.264 files of 24 seconds that decode to their scenes, state by state."""

from pathlib import Path

import numpy as np
import pytest

from fvlm.corpus.controls import RENDERED, RenderedCorpus
from fvlm.corpus.rendered_files import render_clip, render_clips
from fvlm.corpus.rendered_film import footage
from fvlm.corpus.rendered_scenes import PIXELS, STATES, caption, make_scene, pictures
from fvlm.video.decode import decode_video
from fvlm.video.probe import probe_video


@pytest.mark.parametrize("corpus", RENDERED)
def test_a_clip_decodes_to_its_states(
    corpus: RenderedCorpus, tmp_path: Path, footage_film: list[Path]
) -> None:
    path = tmp_path / "clip.mp4"
    render_clip(corpus, 7, path, seed=3, film=footage_film)
    facts = probe_video(str(path))
    assert (facts.codec, facts.container, facts.width, facts.height) == (
        "h264",
        "mp4",
        PIXELS,
        PIXELS,
    )
    assert facts.duration_seconds == 24
    assert path.stat().st_size < 50_000
    clip = decode_video(str(path), num_frames=STATES, size=PIXELS)
    assert clip.pts_seconds == [3 * state + 1 for state in range(STATES)]
    behind = footage(footage_film, 7, seed=3) if corpus == "question_on_film" else ()
    drawn = np.array(pictures(corpus, 7, seed=3, behind=behind)).transpose(0, 3, 1, 2)
    # Colour has half the resolution in H.264: edges differ, areas do not.
    error = abs(clip.frames.astype(int) - drawn)
    assert np.median(error) <= 2
    assert error.mean() < 8
    assert path.with_suffix(".txt").read_text().strip() == caption(corpus, 7, seed=3)


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        render_clip("positive_control", 1, tmp_path / name, seed=0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    settings = b"threads=1 ", b"mbtree=0 "  # x264 writes its settings into the file
    assert all(setting in (tmp_path / "a.mp4").read_bytes() for setting in settings)


@pytest.mark.slow
def test_the_same_bytes_for_many_clips(tmp_path: Path) -> None:
    """With x264's macroblock tree 10 of 1,600 clips differed from one rendering to the next."""
    renderings = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        paths = [tmp_path / name / f"{number}.mp4" for number in range(1600)]
        render_clips("positive_control", paths, seed=0)
        renderings.append([path.read_bytes() for path in paths])
    assert renderings[0] == renderings[1]


def test_the_effect_survives_compression(tmp_path: Path) -> None:
    """The decoded brightness of a state follows the decoded marker of the state before."""
    seen = []
    for number in range(40):
        scene = make_scene("positive_control", number, seed=0)
        if len(scene.hues) == 1:
            path = tmp_path / f"{number}.mp4"
            render_clip("positive_control", number, path, seed=0)
            frames = decode_video(str(path), num_frames=STATES, size=PIXELS).frames.mean(axis=1)
            row, column = 28 * np.array(divmod(int(scene.cells[0]), 4)) + 14 + scene.shifts[0]
            markers = frames[:, row - 2 : row + 3, column - 2 : column + 3].mean(axis=(1, 2))
            brightness = np.median(frames, axis=(1, 2))
            seen.append(np.corrcoef(markers[1:-1], brightness[2:])[0, 1])
    assert len(seen) >= 3
    assert min(seen) > 0.95
