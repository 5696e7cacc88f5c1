"""The arms that an evaluation compares, in the order of every table.

An arm is one way to predict the same latents; all arms see the same clips and frames.
"""

ARMS = {
    "coarse": "coarse pass: the static query",
    "fine": "fine pass: queries predicted by the language model",
    "autoregressive": "fine pass frame by frame, without a coarse pass",
    "static_in_fine": "fine pass with the static query",
    "shuffled": "fine pass with another video's queries",
    "random": "fine pass with random queries",
    "persistence": "copy of the previous latent",
}

# What must be worse than the fine pass before a ratio above 1 can be put down to the queries.
CONTROLS = ("static_in_fine", "shuffled", "random")

# Caption losses of the two passes, of a model that predicts captions: one value a clip.
CAPTIONS = ("caption_coarse", "caption_fine")
