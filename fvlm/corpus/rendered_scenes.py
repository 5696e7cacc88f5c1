"""What the clips of the control corpora show; `fvlm/corpus/controls.py` says why.

A clip has STATES pictures, one after another. In a 4 x 4 grid stand 1 to 8 square sprites of
different hues, fixed for the clip; each has a grey *marker* in its centre, one of four levels,
drawn anew for every sprite and state. The background has one of four brightnesses, the *effect*,
and the tint of one sprite's hue, the *cue*.

Axes: S states, K sprites, P pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fvlm.core.seeding import generator
from fvlm.corpus.controls import ASKING, RenderedCorpus

STATES = 8  # pictures of a clip; store as many frames
PIXELS = (
    112  # height and width; a cell of the grid is 2 x 2 patches, or one at decode.frame_size 56
)
GRID = 4  # cells on a side
CELL = PIXELS // GRID
SPRITE = 22  # pixels; leaves a border of 3, of which the jitter takes at most 2
JITTER = 2
MARKER = 10  # pixels; small, as what markers show next is chance and adds to every loss
LEVELS = 4  # of markers and of brightness, evenly spaced from 0 to 1
MAX_SPRITES = 8
EASY_SPRITES = 4  # at most, where they are to be counted
SWITCHING = 0.3  # probability a state that the cue moves on

HUES = ("red", "amber", "lime", "green", "cyan", "blue", "violet", "pink")
SATURATION, VALUE = 0.9, 0.85
TINT = 0.35  # of the hue, without its own brightness: that belongs to the effect
CONTRAST = 0.8  # between the darkest and the brightest background, in [0, 1]
TEXTURE = 0.02  # standard deviation of the background's smooth pattern
NOISE_CELLS = 7  # blocks of noise on a side
NOISE = 0.25  # standard deviation of their colours

# Corpora that draw another one's scenes, so that only what is asked, or what lies behind, differs.
DRAWN_AS: dict[RenderedCorpus, RenderedCorpus] = {
    "question_negative": "question_control",
    "question_on_film": "question_control",
    "preference_control": "question_control",
}

Picture = NDArray[np.uint8]
Levels = NDArray[np.int64]


@dataclass(frozen=True)
class Scene:
    """One clip's content.

    hues [K] and cells [K] of the sprites, shifts [K,2] pixels; markers [S,K] and brightness [S] in
    levels; cue [S], the sprite whose hue tints the background; texture [P,P].
    """

    hues: Levels
    cells: Levels
    shifts: Levels
    markers: Levels
    cue: Levels
    brightness: Levels
    texture: NDArray[np.float64]


def make_scene(corpus: RenderedCorpus, number: int, *, seed: int) -> Scene:
    """The scene of clip `number`, a pure function of its arguments."""
    rng = generator(seed, f"scene {DRAWN_AS.get(corpus, corpus)}", number)
    counts = np.arange(1, (EASY_SPRITES if corpus == "question_easy" else MAX_SPRITES) + 1)
    switching = corpus == "positive_control_switching"
    # Few sprites teach what a marker means, but leave little to gain; a cue that moves among many
    # is hard to follow. Where each sprite is asked for, one of few is asked for seldom.
    asked = corpus in ASKING and corpus != "question_easy"
    weights = counts ** (-1.0 if switching else -0.5 if asked else 0.0)
    K = int(rng.choice(counts, p=weights / weights.sum()))
    markers = rng.integers(LEVELS, size=(STATES, K))
    cue = _cues(rng, K, switching=switching)
    return Scene(
        hues=rng.permutation(len(HUES))[:K],
        cells=rng.permutation(GRID * GRID)[:K],
        shifts=rng.integers(-JITTER, JITTER + 1, size=(K, 2)),
        markers=markers,
        cue=cue,
        brightness=_brightness(rng, corpus, markers, cue),
        texture=TEXTURE * _smooth(rng.standard_normal((GRID + 1, GRID + 1))),
    )


def _cues(rng: np.random.Generator, K: int, *, switching: bool) -> Levels:
    cue = np.full(STATES, rng.integers(K))
    for state in range(1, STATES):
        moved = switching and K > 1 and rng.random() < SWITCHING
        cue[state] = (cue[state - 1] + rng.integers(1, K)) % K if moved else cue[state - 1]
    return cue


def _brightness(
    rng: np.random.Generator, corpus: RenderedCorpus, markers: Levels, cue: Levels
) -> Levels:
    brightness = rng.integers(LEVELS, size=STATES)
    shown = np.arange(1, STATES - 1)  # markers that the next state answers to
    if corpus in ("positive_control", "positive_control_switching"):
        brightness[2:] = markers[shown, cue[shown - 1]]
    elif corpus == "negative_control_memorise":
        brightness[2:] = markers[shown, rng.integers(markers.shape[1], size=len(shown))]
    return brightness


def draw(scene: Scene, state: int, *, behind: Picture | None = None) -> Picture:
    """Picture of one state, RGB uint8 [P,P,3]; behind: a background that is not the scene's own."""
    picture = _background(scene, state) if behind is None else behind / 255
    for sprite, cell in enumerate(scene.cells):
        centre = CELL * np.array(divmod(int(cell), GRID)) + CELL // 2 + scene.shifts[sprite]
        picture[_square(centre, SPRITE)] = hue_colour(int(scene.hues[sprite]))
        picture[_square(centre, MARKER)] = scene.markers[state, sprite] / (LEVELS - 1)
    return _to_uint8(picture)


def _background(scene: Scene, state: int) -> NDArray[np.float64]:
    """Of the cue's tint and the state's brightness [P,P,3]."""
    level = 0.5 + CONTRAST * (scene.brightness[state] / (LEVELS - 1) - 0.5)
    hue = hue_colour(int(scene.hues[scene.cue[state]]))
    background: NDArray[np.float64] = level + scene.texture[:, :, None] + TINT * (hue - hue.mean())
    return background


def draw_noise(number: int, state: int, *, seed: int) -> Picture:
    """Blocks of random colour, independent of every other state, RGB uint8 [P,P,3]."""
    rng = generator(seed, "noise", number, state)
    blocks = 0.5 + NOISE * rng.standard_normal((NOISE_CELLS, NOISE_CELLS, 3))
    side = PIXELS // NOISE_CELLS
    return _to_uint8(blocks.repeat(side, axis=0).repeat(side, axis=1))


def pictures(
    corpus: RenderedCorpus, number: int, *, seed: int, behind: Sequence[Picture] = ()
) -> list[Picture]:
    """All states of clip `number`; behind: their backgrounds, where these are not drawn."""
    if corpus == "noise_control":
        return [draw_noise(number, state, seed=seed) for state in range(STATES)]
    scene = make_scene(corpus, number, seed=seed)
    if behind:
        return [draw(scene, state, behind=behind[state]) for state in range(STATES)]
    return [draw(scene, state) for state in range(STATES)]


def caption(corpus: RenderedCorpus, number: int, *, seed: int) -> str:
    """What a viewer sees, without the cue: a text that names it would do the query's work."""
    if corpus == "noise_control":
        return "Blocks of random colours."
    hues = sorted(make_scene(corpus, number, seed=seed).hues)
    names = [HUES[hue] for hue in hues]
    squares = "square with a grey centre" if len(names) == 1 else "squares with grey centres"
    return (
        f"{' and '.join(filter(None, [', '.join(names[:-1]), names[-1]])).capitalize()} {squares}."
    )


def hue_colour(hue: int) -> NDArray[np.float64]:
    """RGB [3] in [0, 1] of one of HUES: evenly spaced around the colour circle."""
    turn = hue / len(HUES) * 6
    ramps = np.clip(np.abs((turn - np.array([0, 2, 4]) + 3) % 6 - 3), 1, 2) - 1
    return VALUE * (1 - SATURATION * ramps)


def _square(centre: NDArray[np.int64], side: int) -> tuple[slice, slice]:
    top, left = centre - side // 2
    return slice(top, top + side), slice(left, left + side)


def _smooth(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at the corners of the grid's cells [5,5], interpolated linearly to [P,P]."""
    places = (np.arange(PIXELS) + 0.5) / CELL
    low = places.astype(int)
    share = places - low
    rows = corners[low] * (1 - share)[:, None] + corners[low + 1] * share[:, None]
    smooth: NDArray[np.float64] = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    return smooth


def _to_uint8(picture: NDArray[np.float64]) -> Picture:
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
