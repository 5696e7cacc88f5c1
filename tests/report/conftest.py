"""A clip whose every picture is known, and a report of round figures."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvlm.evaluation.arms import ARMS, CONTROLS
from fvlm.report.gallery import Chosen, picture_clip
from fvlm.report.page import PicturedClip, Report
from fvlm.report.view import ClipView, PassView

T, S, SIDE = 7, 32, 3
ALONG = [(t % SIDE, t // SIDE) for t in range(T)]  # patch (column, row) looked at, by frame


@pytest.fixture(scope="session")
def view() -> ClipView:
    """The fine pass reads one patch a frame, row by row; the coarse pass reads all alike."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (4, T, S, S, 3), np.uint8)
    single = np.zeros((T, SIDE, SIDE), np.float32)
    for t, (column, row) in enumerate(ALONG):
        single[t, row, column] = SIDE * SIDE
    even = np.ones((T, SIDE, SIDE), np.float32)
    alike, apart = np.ones((T, T), np.float32), np.eye(T, dtype=np.float32)
    losses = {name: np.full(T, value, np.float32) for name, value in _LOSSES.items()}
    losses["persistence"][0] = np.nan
    return ClipView(
        frames=pictures[0],
        seconds=[1.5 * t for t in range(T)],
        passes={
            "coarse": PassView(even, alike, entropy=1.0, peak=1.0),
            "fine": PassView(single, apart, entropy=0.0, peak=9.0),
            "autoregressive": PassView(single, apart, entropy=0.0, peak=9.0),
        },
        decoded=dict(zip(("actual", "coarse", "fine"), pictures[1:], strict=True)),
        latents={name: np.zeros((T, 4, 4, 4), np.float32) for name in ("coarse", "fine")},
        losses=losses,
    )


_LOSSES = {"coarse": 0.25, "fine": 0.125, "persistence": 0.5}


@pytest.fixture(scope="session")
def evaluation() -> dict[str, Any]:
    """Figures as metrics/evaluate.json has them; `shuffled` is undefined, as with one video."""
    found: dict[str, Any] = {
        "verdict": "inconclusive",
        "statement": "Inconclusive: nothing is shown.",
        "videos": 6,
        "clips": 7,
    }
    for number, name in enumerate(ARMS):
        found[f"loss_{name}"] = 0.1 + number / 100
        found[f"ratio_{name}"] = 1.0 + number / 100
        found[f"ratio_{name}_dynamic"] = 1.0 - number / 100
    for number, name in enumerate(
        ("coarse_fine_ratio", "coarse_fine_ratio_dynamic", *_AGAINST, _SEEN)
    ):
        found[name] = 1.1 + number / 10
        found[f"{name}_low"], found[f"{name}_high"] = 1.05 + number / 10, 1.15 + number / 10
    found["train_videos"] = 6
    for name in ("shuffled_fine_ratio_dynamic", "ratio_shuffled", "ratio_shuffled_dynamic"):
        found[name] = None
    for end in ("low", "high"):
        found[f"shuffled_fine_ratio_dynamic_{end}"] = None
    for name in ("coarse", "fine"):
        found[f"attention_entropy_{name}"], found[f"attention_peak_{name}"] = 0.875, 3.25
    return found | {"query_similarity": 0.5, "loss_shuffled": None}


_SEEN = "train_coarse_fine_ratio_dynamic"
_AGAINST = [f"{name}_fine_ratio_dynamic" for name in CONTROLS]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pictured clip's files."""
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="session")
def clip(view: ClipView, pictures: Path) -> PicturedClip:
    chosen = Chosen("clip-1", "Best", 1.25)
    return picture_clip(
        view, chosen, video_id="a <b> & c.mp4", caption='It says "hi".', folder=pictures
    )


@pytest.fixture(scope="session")
def make_report(evaluation: dict[str, Any], clip: PicturedClip) -> Callable[..., Report]:
    """A report; its fields can be replaced."""
    ratio = {"coarse_fine_ratio": "1.02", "coarse_fine_ratio_low": "0.99"}
    frame = {"loss_coarse": "0.2", "loss_fine": "0.19", "coarse_fine_ratio_high": "1.07"} | ratio
    empty = dict.fromkeys(frame, "")
    motion = {f"coarse_fine_ratio_dynamic{end}": "1.01" for end in ("", "_low", "_high")}
    report = Report(
        evaluation=evaluation,
        training={"steps": 80, "loss_coarse": 0.25},
        filtering={"inputs": 9, "accepted": 7, "filtered": 1, "quarantined": 1},
        decoding={"inputs": 7, "decoded": 7, "quarantined": 0},
        curves=[
            {"samples": str(8 * n), "loss_coarse": f"{1 / n}", "loss_fine": f"{0.9 / n}"}
            for n in range(1, 9)
        ],
        frames=[{"frame": "1"} | empty, *({"frame": str(t)} | frame for t in range(2, 9))],
        motion=[
            {"quartile": str(n), "clips": "2", "videos": "2", "loss_persistence": "0.3"} | motion
            for n in range(1, 5)
        ],
        clips=[clip],
        shown="All 7 held-out clips.",
        tokens=10,
        unused=[
            {
                "video_id": "<script>alert(1)</script>.mp4",
                "status": "quarantined",
                "reason": "decode_error",
                "message": "a very_long_name_" * 20,
            }
        ],
        params={"train": {"lr": 0.0003, "batch_size": 8}},
        provenance={"git commit": "0123456789abcdef" * 4},
        versions={"torch": "2.13.0"},
    )

    def make(**changes: Any) -> Report:
        return dataclasses.replace(report, **changes)

    return make
