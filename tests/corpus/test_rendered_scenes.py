"""Each control corpus has the property that it is rendered for, and no other clue."""

import colorsys

import numpy as np
import pytest
from numpy.typing import NDArray

from fvlm.corpus.controls import RENDERED, RenderedCorpus
from fvlm.corpus.rendered_scenes import (
    CELL,
    HUES,
    LEVELS,
    STATES,
    Scene,
    caption,
    draw,
    hue_colour,
    make_scene,
    pictures,
)

CLIPS = 400
SCENES: tuple[RenderedCorpus, ...] = tuple(
    corpus for corpus in RENDERED if corpus != "noise_control"
)


def scenes(corpus: RenderedCorpus) -> list[Scene]:
    return [make_scene(corpus, number, seed=0) for number in range(CLIPS)]


def cued_markers(scene: Scene) -> NDArray[np.int64]:
    """Level of the sprite cued at t - 2, shown at t - 1, for t = 2 .. STATES - 1 (from 0)."""
    return np.array([scene.markers[t - 1, scene.cue[t - 2]] for t in range(2, STATES)])


@pytest.mark.parametrize("corpus", ["positive_control", "positive_control_switching"])
def test_the_cued_marker_decides_the_next_brightness(corpus: RenderedCorpus) -> None:
    for scene in scenes(corpus):
        np.testing.assert_array_equal(scene.brightness[2:], cued_markers(scene))


@pytest.mark.parametrize("corpus", ["negative_control", "negative_control_memorise"])
def test_the_cue_says_nothing_in_the_negative_controls(corpus: RenderedCorpus) -> None:
    """The cued sprite is right as often as any other sprite would be."""
    agree, chance = [], []
    for scene in scenes(corpus):
        agree += list(scene.brightness[2:] == cued_markers(scene))
        decides = 1 / len(scene.hues) if corpus == "negative_control_memorise" else 0.0
        chance += [decides + (1 - decides) / LEVELS] * (STATES - 2)
    assert np.mean(agree) == pytest.approx(np.mean(chance), abs=0.03)


def test_brightness_is_independent_of_all_markers_in_the_strict_negative_control() -> None:
    """Not even with a single sprite."""
    single = [scene for scene in scenes("negative_control") if len(scene.hues) == 1]
    before = np.concatenate([scene.markers[:-1, 0] for scene in single])
    after = np.concatenate([scene.brightness[1:] for scene in single])
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.12


def test_any_visible_sprite_decides_in_the_memorising_control() -> None:
    for scene in scenes("negative_control_memorise"):
        for t in range(2, STATES):
            assert scene.brightness[t] in scene.markers[t - 1]


@pytest.mark.parametrize("corpus", SCENES)
def test_the_first_two_states_are_chance(corpus: RenderedCorpus) -> None:
    first = np.array([scene.brightness[:2] for scene in scenes(corpus)])
    counts = np.apply_along_axis(np.bincount, 0, first, minlength=LEVELS)
    assert (abs(counts / CLIPS - 1 / LEVELS) < 0.08).all()


@pytest.mark.parametrize("corpus", SCENES)
def test_sprites_differ_and_only_the_switching_cue_moves(corpus: RenderedCorpus) -> None:
    moves = 0
    for scene in scenes(corpus):
        assert len(set(scene.hues)) == len(set(scene.cells)) == len(scene.hues)
        moves += int(np.count_nonzero(np.diff(scene.cue)))
    assert (moves > 0) == (corpus == "positive_control_switching")


def test_the_picture_shows_the_scene() -> None:
    for number in range(20):
        scene = make_scene("positive_control", number, seed=1)
        for state in range(STATES):
            picture = draw(scene, state) / 255
            for sprite, cell in enumerate(scene.cells):
                y, x = CELL * np.array(divmod(int(cell), 4)) + CELL // 2 + scene.shifts[sprite]
                level = scene.markers[state, sprite] / (LEVELS - 1)
                np.testing.assert_allclose(picture[y, x], level, atol=0.003)
                hue = hue_colour(int(scene.hues[sprite]))
                np.testing.assert_allclose(picture[y - 9, x - 9], hue, atol=0.003)


def test_brighter_states_are_brighter_everywhere_between_the_sprites() -> None:
    scene = make_scene("positive_control", 3, seed=0)
    borders = [draw(scene, state)[:, ::CELL].mean() for state in range(STATES)]
    for level in range(LEVELS - 1):
        below = [b for b, v in zip(borders, scene.brightness, strict=True) if v == level]
        above = [b for b, v in zip(borders, scene.brightness, strict=True) if v == level + 1]
        assert not (below and above) or max(below) < min(above)


def test_a_clip_is_a_function_of_corpus_number_and_seed() -> None:
    def clip(corpus: RenderedCorpus, number: int, seed: int) -> bytes:
        return b"".join(picture.tobytes() for picture in pictures(corpus, number, seed=seed))

    for corpus in RENDERED:
        assert clip(corpus, 5, 0) == clip(corpus, 5, 0)
        assert len({clip(corpus, 5, 0), clip(corpus, 6, 0), clip(corpus, 5, 1)}) == 3


def test_noise_states_are_independent() -> None:
    shown = np.array([pictures("noise_control", number, seed=0) for number in range(50)])
    blocks = shown[:, :, 8::16, 8::16].astype(float)
    for lag in (1, 2):
        before, after = blocks[:, :-lag].ravel(), blocks[:, lag:].ravel()
        assert abs(np.corrcoef(before, after)[0, 1]) < 0.01


def test_captions_name_the_sprites_and_not_the_cue() -> None:
    scene = make_scene("positive_control", 0, seed=0)
    text = caption("positive_control", 0, seed=0).lower()
    assert {hue for hue in HUES if hue in text} == {HUES[hue] for hue in scene.hues}
    others = {caption("positive_control", number, seed=0) for number in range(30)}
    assert len(others) > 5
    assert "cue" not in text


def test_hues_are_evenly_spaced() -> None:
    for hue in range(len(HUES)):
        np.testing.assert_allclose(hue_colour(hue), colorsys.hsv_to_rgb(hue / 8, 0.9, 0.85))
