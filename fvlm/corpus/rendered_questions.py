"""Questions about the clips of control corpora, with answers that are known.

Rows are as `questions.py` reads them. There is one about each sprite of a clip.
"""

from typing import Any

from fvlm.core.seeding import generator
from fvlm.corpus.controls import ASKING, RenderedCorpus
from fvlm.corpus.rendered_scenes import HUES, LEVELS, Levels, Scene, make_scene

BRIGHTNESS = ("black", "dark", "light", "white")  # the words of LEVELS
FEW = 4  # sprites at most


def ask(corpus: RenderedCorpus, number: int, *, seed: int) -> list[dict[str, Any]]:
    """The questions about clip `number`, a pure function of its arguments; none where not asked."""
    if corpus not in ASKING:
        return []
    scene = make_scene(corpus, number, seed=seed)
    if corpus == "question_negative":
        coins = generator(seed, f"answers {corpus}", number)
        return _about_sprites(scene, coins.integers(LEVELS, size=len(scene.hues)))
    return _about_sprites(scene, scene.markers[-1])


def _about_sprites(scene: Scene, levels: Levels) -> list[dict[str, Any]]:
    """One question for each of K sprites, whose answers are these levels [K].

    The kind says among how many sprites one has to be found.
    """
    K = len(scene.hues)
    kind = "one" if K == 1 else "few" if K <= FEW else "many"
    return [
        {
            "question": f"How bright is the {HUES[hue]} square at the end?",
            "answer": BRIGHTNESS[level],
            "options": list(BRIGHTNESS),
            "kind": kind,
        }
        for hue, level in zip(scene.hues, levels, strict=True)
    ]
