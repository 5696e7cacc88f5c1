"""List the videos of a source; nothing is copied or opened. First, all parameters are checked.

Reads   the source, params.yaml:collect
Writes  data/collect/videos.jsonl
"""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from fvlm.corpus.listing import CollectParams, in_words, list_videos
from fvlm.errors import ParamsError
from fvlm.io import atomic_write, state_folder, write_jsonl
from fvlm.params import Params, hash_params, load_params
from pipeline.stage import run

VIDEOS = Path("data/collect/videos.jsonl")


class Sections(Params):
    """What this stage reads of params.yaml."""

    collect: CollectParams


def main() -> None:
    """Write one line a video."""
    params = load_params(Sections).collect
    videos, left_out = list_videos(params)
    write_jsonl(VIDEOS, map(asdict, videos))
    captioned = sum(bool(video.caption) for video in videos)
    counted = f"{len(videos)} videos ({sum(video.size for video in videos) / 1e6:.1f} MB)"
    print(f"collect: {counted}, {captioned} with a caption, in {params.source}")
    if left_out:
        print(f"collect: left out {in_words(left_out)}")


def check_params() -> None:
    """Check all of params.yaml when it has changed: a fault in `train` is no news for after hours.

    In a process of its own: the components of later stages take seconds to import. Raises
    ParamsError with every fault.
    """
    digest, checked = hash_params(), state_folder() / "params.sha256"
    if checked.exists() and checked.read_text() == digest:
        return
    command = [sys.executable, "-m", "pipeline.check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ParamsError(done.stderr.strip().removeprefix("error: "))
    with atomic_write(checked) as file:
        file.write(digest.encode())


def check_and_list() -> None:
    """What `dvc repro` begins with."""
    check_params()
    main()


if __name__ == "__main__":
    run(check_and_list)
