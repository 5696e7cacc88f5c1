"""Where the demo film is cut, and what each clip shows.

Film: Big Buck Bunny, (c) copyright 2008, Blender Foundation / www.bigbuckbunny.org, CC-BY-3.0.
Starts are frame numbers: keyframes at changes of scene. Not every keyframe of this film can begin a
clip (behind frame 4227 the stream refers to earlier pictures). Captions are written
from the frames.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoClip:
    """One clip of the film: from frame `start` to the next clip's start."""

    start: int
    caption: str


CLIPS = (
    DemoClip(0, "Pink clouds drift over a cartoon forest as the view sinks to a green meadow."),
    DemoClip(
        285,
        "A stream runs through a meadow, a purple bird takes off from a branch, and after the "
        "title a big grey rabbit wakes up in its burrow.",
    ),
    DemoClip(
        1145,
        "A big grey rabbit climbs out of its burrow, looks up at the sky and walks over to smell "
        "white flowers.",
    ),
    DemoClip(
        1711,
        "A rabbit plays with a pink butterfly in a meadow and picks up a red apple that has fallen "
        "beside it, watched from a branch above.",
    ),
    DemoClip(
        2394,
        "A butterfly lands on the face of a big rabbit, which walks away towards a tree while "
        "three rodents with a nut watch it.",
    ),
    DemoClip(
        2963,
        "A rabbit rests against a tree trunk with a butterfly above it while a squirrel and a red "
        "rodent creep around the trunk behind its back.",
    ),
    DemoClip(
        3513,
        "Rodents hide behind a tree root while the rabbit walks across the meadow and stares ahead "
        "with a shocked face.",
    ),
    DemoClip(
        4069,
        "Rodents behind a root throw fruit at the rabbit, and a squirrel with a stone sneaks up on "
        "a pink butterfly.",
    ),
    DemoClip(
        4726,
        "The rabbit looks down in dismay while a squirrel and a red rodent play with a purple "
        "butterfly's wings and hold up a spiky green chestnut.",
    ),
    DemoClip(
        5292,
        "The rabbit stands among fallen fruit, goes to a tree and leans on its trunk, and its face "
        "turns determined.",
    ),
    DemoClip(
        5809,
        "A grey rabbit marches through a forest and makes weapons: it bends wood, ties sharpened "
        "stakes with leaves and pulls a vine.",
    ),
    DemoClip(
        6488,
        "A rabbit skips with a vine in the forest, carries an armful of leaves, paints dark marks "
        "under its eyes and aims a bow and arrow from the shade.",
    ),
    DemoClip(
        7208,
        "Three rodents come through tall yellow grass into a forest while the rabbit draws a bow "
        "made of a branch and a vine.",
    ),
    DemoClip(
        7769,
        "Three frightened rodents look up as a log on ropes swings down and knocks the red one "
        "away, and the grey one is left alone by a rock.",
    ),
    DemoClip(
        8316,
        "A small grey rodent with a nut runs past a falling rock and a rolling log and bumps into "
        "the big rabbit, who stands over it.",
    ),
    DemoClip(
        8945,
        "The rabbit stands in the forest after a catapult throw; a squirrel flees up a tree trunk "
        "past a purple bird on a branch.",
    ),
    DemoClip(
        9468,
        "A flying squirrel spreads its skin on a high branch against the blue sky, jumps and "
        "glides, and a brown nut drops past a tree trunk.",
    ),
    DemoClip(
        10016,
        "A nut falls onto sharpened wooden stakes, and a flying squirrel glides in fear over the "
        "trees while the rabbit waits below.",
    ),
    DemoClip(
        10574,
        "A flying squirrel drops from the sky and clings to a branch above pointed stakes until "
        "the big rabbit grabs it.",
    ),
    DemoClip(
        11057,
        "A big rabbit sits smiling in a sunny meadow with a butterfly, and then flies the "
        "wide-eyed squirrel like a kite under a white cloud.",
    ),
    DemoClip(
        11771,
        "White end credits roll over blue, green, orange and black backgrounds with small cartoon "
        "rodents.",
    ),
    DemoClip(13296, "Dense columns of names roll up a dark screen past a red cartoon rodent."),
    DemoClip(13656, "The last credits roll over a brown background with a pink butterfly."),
    DemoClip(
        13942,
        "A flying squirrel hangs in a blue sky with its arms spread wide while a purple bird "
        "flutters above its head.",
    ),
)
