"""Questions about the clips of control corpora, with answers that are known.

Rows are as `questions.py` reads them.
"""

from typing import Any

from fvlm.core.seeding import generator
from fvlm.corpus.controls import ASKING, RenderedCorpus
from fvlm.corpus.rendered_scenes import HUES, LEVELS, Levels, Scene, make_scene

Row = dict[str, Any]

BRIGHTNESS = ("black", "dark", "light", "white")  # the words of LEVELS
COUNTS = ("one", "two", "three", "four")  # of up to EASY_SPRITES
FEW = 4  # sprites at most
TINTS = 4  # to choose from, evenly spaced around the colour circle


def ask(corpus: RenderedCorpus, number: int, *, seed: int) -> list[Row]:
    """The questions about clip `number`, a pure function of its arguments; none where not asked."""
    if corpus not in ASKING:
        return []
    scene = make_scene(corpus, number, seed=seed)
    if corpus == "question_easy":
        return [_about_count(scene), _about_tint(scene)]
    levels = scene.markers[-1]
    draws = generator(seed, f"answers {corpus}", number)
    if corpus == "question_negative":
        levels = draws.integers(LEVELS, size=len(levels))
    rows = _about_sprites(scene, levels)
    if corpus == "preference_control":
        wrong = (levels + draws.integers(1, LEVELS, size=len(levels))) % LEVELS
        return [
            row | _rejected(row["answer"], BRIGHTNESS[level], in_style=number % 2 == 1)
            for row, level in zip(rows, wrong, strict=True)
        ]
    return rows


def _about_sprites(scene: Scene, levels: Levels) -> list[Row]:
    """One question for each of K sprites, whose answers are these levels [K].

    How bright is the centre of the square of this hue at the end? Only the hue is asked: with words
    that all questions share, a model that is trained from nothing stays three times as long where
    both passes guess. The kind says among how many sprites one has to be found.
    """
    K = len(scene.hues)
    kind = "one" if K == 1 else "few" if K <= FEW else "many"
    return [
        {
            "question": f"{HUES[hue].capitalize()}?",
            "answer": BRIGHTNESS[level],
            "options": list(BRIGHTNESS),
            "kind": kind,
        }
        for hue, level in zip(scene.hues, levels, strict=True)
    ]


def _rejected(answer: str, wrong: str, *, in_style: bool) -> Row:
    """A worse answer: a wrong one, or the right one in more words."""
    if in_style:
        return {"rejected": f"it is {answer}", "kind": "style"}
    return {"rejected": wrong, "kind": "wrong"}


def _about_count(scene: Scene) -> Row:
    return {
        "question": "How many squares are there?",
        "answer": COUNTS[len(scene.hues) - 1],
        "options": list(COUNTS),
        "kind": "count",
    }


def _about_tint(scene: Scene) -> Row:
    """The cue stays; the hues to choose from are as far from each other as can be."""
    hue = int(scene.hues[scene.cue[-1]])
    apart = len(HUES) // TINTS
    return {
        "question": "What tint has the background?",
        "answer": HUES[hue],
        "options": list(HUES[hue % apart :: apart]),
        "kind": "tint",
    }
