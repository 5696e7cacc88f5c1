"""List the videos of a source; nothing is copied or opened.

Reads   the source, params.yaml:collect
Writes  data/collect/videos.jsonl
"""

from dataclasses import asdict
from pathlib import Path

from fvlm.corpus.listing import CollectParams, list_videos
from fvlm.io import write_jsonl
from fvlm.params import Params, load_params
from pipeline.stage import run

VIDEOS = Path("data/collect/videos.jsonl")


class Sections(Params):
    """What this stage reads of params.yaml."""

    collect: CollectParams


def main() -> None:
    """Write one line a video."""
    params = load_params(Sections).collect
    videos = list_videos(params)
    write_jsonl(VIDEOS, map(asdict, videos))
    captioned = sum(bool(video.caption) for video in videos)
    counted = f"{len(videos)} videos ({sum(video.size for video in videos) / 1e6:.1f} MB)"
    print(f"collect: {counted}, {captioned} with a caption, in {params.source}")


if __name__ == "__main__":
    run(main)
