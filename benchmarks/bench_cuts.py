"""Are changes of shot found? Held against those that were marked by hand in the demo's film.

    python -m benchmarks.bench_cuts

`cuts_by_hand.csv` has the first frame of every shot of the film's first four minutes, marked from
contact sheets before any detector ran, and the frames over which pictures fade: what is found there
counts neither way. A cut is found where it is at most one frame away. Cuts at which the demo's
clips begin are left out: a clip has nothing before its first frame. Last line: one JSON object, at
the threshold that is used.
"""

import csv
import json
import resource
from pathlib import Path

from fvlm.corpus.demo import clip_names, demo_folder
from fvlm.corpus.demo_clips import CLIPS
from fvlm.video.cuts import THRESHOLD, scene_scores

MARKED = Path(__file__).with_name("cuts_by_hand.csv")
LAST = 4 * 60 * 24  # frames that were looked at
THRESHOLDS = (0.1, 0.15, THRESHOLD, 0.25, 0.3, 0.4)
APART = 1  # frames


def read_marks() -> tuple[set[int], set[int]]:
    """Frames at which shots begin inside a clip, and frames of fades."""
    with MARKED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    begins = {clip.start for clip in CLIPS}
    cuts = {int(row["frame"]) for row in rows if row["kind"] == "cut"} - begins
    fades = [range(int(row["frame"]), int(row["end"]) + 1) for row in rows if row["kind"] == "fade"]
    return cuts, {frame for fade in fades for frame in fade}


def score_frames() -> dict[int, float]:
    """The score of every frame of the film up to LAST."""
    scores = {}
    for name, clip in zip(clip_names(), CLIPS, strict=True):
        if clip.start <= LAST:
            for seconds, score in scene_scores(str(demo_folder() / name)):
                scores[clip.start + round(24 * seconds)] = score
    return {frame: score for frame, score in scores.items() if frame <= LAST}


def compare(found: set[int], cuts: set[int], fades: set[int]) -> dict[str, float]:
    """Precision, recall and F1."""
    hits = sum(any(abs(cut - frame) <= APART for frame in found) for cut in cuts)
    false = sum(
        frame not in fades and not any(abs(cut - frame) <= APART for cut in cuts) for frame in found
    )
    precision, recall = hits / max(1, hits + false), hits / len(cuts)
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    return {
        name: round(x, 3) for name, x in (("precision", precision), ("recall", recall), ("f1", f1))
    }


def main() -> None:
    demo_folder()
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    scores = score_frames()
    seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - begin
    cuts, fades = read_marks()
    print(f"{len(cuts)} cuts in {len(scores)} frames")
    for threshold in THRESHOLDS:
        found = {frame for frame, score in scores.items() if score > threshold}
        result = compare(found, cuts, fades)
        print(f"{threshold:5}", "  ".join(f"{name} {value:.3f}" for name, value in result.items()))
        if threshold == THRESHOLD:
            chosen = result
    minutes = len(scores) / 24 / 60
    print(json.dumps(chosen | {"seconds_per_minute_of_film": round(seconds / minutes, 1)}))


if __name__ == "__main__":
    main()
