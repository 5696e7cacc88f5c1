"""List the videos of a source; nothing is copied or opened. First, all parameters are checked.

Reads   the source, params.yaml:collect, the sources of pretrained parts that params.yaml names;
        looks back at what filter and decode left out the last time
Writes  data/collect/videos.jsonl, data/collect/questions.jsonl, data/weights/ (what those sources
        hold: later stages depend on it)
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from fvlm.core.errors import FvlmError, ParamsError
from fvlm.core.io import project_root, read_json, write_json
from fvlm.core.params import PARAMS, Params, is_checked, load_params, read_yaml
from fvlm.core.rows import Rows, write_rows
from fvlm.core.stage import run
from fvlm.corpus.listed import ListedVideo
from fvlm.corpus.listing import CollectParams, in_words, list_videos, own_copy
from fvlm.corpus.questions import list_questions
from fvlm.video.reasons import PASSING
from fvlm.weights.listing import list_weights
from pipeline.paths import ASKED, FRAMES, MANIFEST, MODEL, VIDEOS, WEIGHTS


class Sections(Params):
    """What this stage reads of params.yaml."""

    collect: CollectParams


def main() -> None:
    """Write one line a video, and what tells the pretrained parts apart."""
    params = load_params(Sections).collect
    videos, left_out = list_videos(params)
    file = project_root() / Path(params.questions).expanduser() if params.questions else None
    questions = list_questions(videos, file and own_copy(file))
    write_rows(VIDEOS, (video.row() for video in videos))
    write_rows(ASKED, questions)
    captioned = sum(bool(video.caption) for video in videos)
    counted = f"{len(videos)} video{'s' * (len(videos) != 1)}"
    size = sum(video.size for video in videos) / 1e6
    print(f"collect: {counted} ({size:.1f} MB), {captioned} with a caption, in {params.source}")
    if questions:
        print(f"collect: {len(questions)} questions")
    if left_out:
        print(f"collect: left out {in_words(left_out)}")
    say_what_to_try_again(videos)
    for kind, described in list_weights(read_yaml(PARAMS), made=MODEL).items():
        write_json(WEIGHTS / f"{kind}.json", described)


def say_what_to_try_again(videos: Sequence[ListedVideo]) -> None:
    """Name what the present results lack for a reason of the moment, such as a time-out.

    DVC takes these results for finished, since nothing that they were made from has changed.
    """
    for stage in ("filter", "decode"):
        failed = dict(_left_out_by(stage))
        listed = (video.video_id for video in videos if failed and video.video_id in failed)
        failed = {name: failed[name] for name in listed}
        for name, why in sorted(failed.items())[:1]:
            print(
                f"collect: {len(failed)} of these could not be read by {stage} the last time, such "
                f"as {name} ({why}): `dvc repro -f -s {stage} && dvc repro` tries again"
            )


def _left_out_by(stage: str) -> Iterator[tuple[str, str]]:
    """Videos without a result of the stage that might have one another time, and the reasons."""
    with suppress(FvlmError, LookupError):  # not there yet, or of another version
        manifest = FRAMES / "manifest.json"
        filtered = Rows(MANIFEST, holding='"quarantined"')
        rows = filtered if stage == "filter" else read_json(manifest)["quarantined"]
        for row in rows:
            if row["reason"] in PASSING:
                yield row["video_id"], row["reason"]


def check_params() -> None:
    """Check all of params.yaml: a fault in `train` is no news for after hours.

    Only when it, the code, or what it says of pretrained parts has changed, and in a process of its
    own: the components of later stages take seconds to import. Raises ParamsError with every fault.
    """
    if is_checked():
        return
    command = [sys.executable, "-m", "fvlm", "check", "--only-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ParamsError(done.stderr.strip().removeprefix("error: "))
    print(done.stdout, end="")


def check_and_list() -> None:
    """What `dvc repro` begins with."""
    check_params()
    main()


if __name__ == "__main__":
    run(check_and_list)
