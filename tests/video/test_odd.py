"""Unusual and broken files from the wild, where a folder of them is at hand.

`FVLM_TEST_CORPUS` names a folder with `natural/`, `bbb/` and `odd/`, where `EXPECT.tsv` says what
a plain decoding loop found in each file.
"""

import csv
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from fvlm.core.errors import VideoError
from fvlm.video.worker import Outcome, map_isolated

CORPUS = Path(os.environ.get("FVLM_TEST_CORPUS", "nowhere"))
pytestmark = pytest.mark.skipif(not CORPUS.is_dir(), reason="FVLM_TEST_CORPUS is not set")

REFUSED = {
    "ExoPlayer_subsample_encrypted_altref.webm": "decode_error",
    "head_cut_1k.mp4": "unreadable",
    "mediabunny_annex-b.mp4": "missing_frames",
    "mediabunny_multiple-aac-tracks.mp4": "no_video_stream",
    "mp4parse-rust_bipbop_cbcs_video_init.mp4": "no_frames",
    "mp4parse-rust_no_timescale.mp4": "decode_error",
    "mp4parse-rust_test_case_1185230.mp4": "missing_frames",
    "pymediainfo_issue55.flv": "no_video_stream",
    "pymediainfo_mpeg4.mp4": "no_video_stream",
    "random_bytes.mp4": "unreadable",
    "truncated_30pct.mp4": "missing_frames",
    "zero_bytes.mp4": "empty_file",
}
WHOLE = {"clips": [[0.0, None]]}


def decode_all(files: list[Path]) -> dict[str, Any]:
    """Name -> VideoError or (probe values, decode outcome)."""
    results: dict[str, Any] = {}
    requests = []
    for request, outcome in map_isolated(
        "fvlm.video.probe:probe_request", [{"path": str(path)} for path in files]
    ):
        results[Path(request["path"]).name] = outcome
        if isinstance(outcome, Outcome):
            sha256 = hashlib.sha256(Path(request["path"]).read_bytes()).hexdigest()
            assert outcome.values["sha256"] == sha256
            frames = min(outcome.values["frames"], 16)
            requests.append(
                {
                    **request,
                    "sha256": sha256,
                    "num_frames": frames,
                    "size": 32,
                    "clips": [[0.0, None]],
                }
            )
    for request, outcome in map_isolated("fvlm.video.decode:decode_request", requests):
        name = Path(request["path"]).name
        results[name] = outcome if isinstance(outcome, VideoError) else results[name]
    return results


def test_odd_files_end_as_expected() -> None:
    files = sorted(path for path in (CORPUS / "odd").iterdir() if path.suffix != ".tsv")
    results = decode_all(files)
    refused = {n: r.reason for n, r in results.items() if isinstance(r, VideoError)}
    assert refused == {name: REFUSED[name] for name in REFUSED if name in results}
    facts = {name: r.values for name, r in results.items() if isinstance(r, Outcome)}
    with (CORPUS / "odd" / "EXPECT.tsv").open(newline="") as file:
        expected = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert expected.keys() == results.keys()
    for name, found in facts.items():
        row = expected[name]
        assert found["codec"] == row["codec"], name
        assert sorted((found["width"], found["height"])) == sorted(map(int, row["size"].split("x")))
        if not row["decode_error"]:
            assert found["frames"] == int(row["frames_decoded"]), name
    turned = facts["ExoPlayer_portrait_4k60.mp4"]
    assert (turned["width"], turned["height"], turned["rotation"]) == (2160, 3840, 90)
    assert facts["moviepy_bitmap.mp4"]["width"] == 1
    assert facts["moviepy_no_duration.webm"]["duration_seconds"] == pytest.approx(4.94, abs=0.1)
    assert facts["ExoPlayer_sample.flv"]["fps"] == pytest.approx(30, abs=2)


@pytest.mark.parametrize("folder", ["natural", "bbb"])
def test_no_clean_file_is_refused(folder: str) -> None:
    files = sorted((CORPUS / folder).iterdir())
    results = decode_all(files)
    assert {n: str(r) for n, r in results.items() if isinstance(r, VideoError)} == {}
