"""Control corpora: videos of which it is known what a predicted query can gain on them.

Each state of a clip shows sprites with grey markers on a tinted background whose brightness, the
same all over the picture, is the effect. What decides the brightness makes the corpus:

    positive_control            state t has the level of the marker that the cued sprite showed at
                                t - 1. Reading one marker out of many takes knowing the cue (the
                                tint) before looking: a predicted query can, a static one cannot
    positive_control_switching  likewise, but the cue moves to another sprite with probability 0.3
                                a state; it is that of t - 2, which a query for t - 1 can know
    negative_control            chance: nothing can be gained, every ratio must be 1
    negative_control_memorise   the marker of a sprite drawn anew for every state: it looks like the
                                positive control, but no query can know which. A gain on training
                                clips alone shows what the model learned by heart
    noise_control               states are independent noise: who predicts them has seen them

Others ask a question about each sprite: how bright its marker is in the last state, one of four
words. Their brightness is chance. Reading one marker out of many takes knowing the question before
looking. They show the same sprites in clips of the same numbers:

    question_control            the answer is what the marker shows
    question_negative           the answer is a coin: no pass can be better than chance
    question_on_film            as question_control, on pictures of the demo film as background
    preference_control          as question_control, with rejected answers: wrong ones in every
                                other clip (kind "wrong"), else right ones in more words ("style")
    question_easy               clips of their own with one to four sprites: how many there are, and
                                which tint the background has. One look shows it: both passes answer

Why so. The effect fills the picture, as FiLM can only act on all of it alike. A cue that stays
needs no sharp attention of its own. Clips with few sprites teach what a marker means. The
brightness of the first two states is chance, as no query can help there: the first that knows the
tint reads state 2, and its effect is state 3.
"""

from typing import Literal, get_args

AskingCorpus = Literal[
    "question_control",
    "question_negative",
    "question_on_film",
    "preference_control",
    "question_easy",
]
ASKING: tuple[AskingCorpus, ...] = get_args(AskingCorpus)
"""Those with questions beside their clips."""
RenderedCorpus = Literal[
    "positive_control",
    "positive_control_switching",
    "negative_control",
    "negative_control_memorise",
    "noise_control",
    AskingCorpus,
]
RENDERED: tuple[RenderedCorpus, ...] = get_args(RenderedCorpus)
