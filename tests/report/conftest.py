"""A clip whose every picture is known, and a report of round figures."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fvlm.core.document import read_document
from fvlm.report.accounts import CutVideo
from fvlm.report.choice import Chosen
from fvlm.report.gallery import picture_clip
from fvlm.report.page import PicturedClip, Report
from fvlm.report.view import ClipView, PassView
from fvlm.statistics.evaluation import ClipRow, Evaluation, FrameRow, MotionRow
from fvlm.statistics.ratio import UNDEFINED, Estimate

T, S, SIDE = 7, 32, 3
ALONG = [(t % SIDE, t // SIDE) for t in range(T)]  # patch (column, row) looked at, by frame


@pytest.fixture(scope="session")
def view() -> ClipView:
    """The fine pass reads one patch a frame, row by row; the coarse pass reads all alike.

    No two frames, passes or errors are the same.
    """
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (4, T, S, S, 3), np.uint8)
    single = np.zeros((T, SIDE, SIDE), np.float32)
    for t, (column, row) in enumerate(ALONG):
        single[t, row, column] = SIDE * SIDE
    even = np.ones((T, SIDE, SIDE), np.float32)
    backwards = single[:, ::-1, ::-1] / np.float32(2)
    alike, apart = np.ones((T, T), np.float32), np.eye(T, dtype=np.float32)
    similar = np.full((T, T), 0.5, np.float32)
    losses = {
        name: (first + np.arange(T) / 100).astype(np.float32) for name, first in _LOSSES.items()
    }
    losses["persistence"][0] = np.nan
    return ClipView(
        frames=pictures[0],
        seconds=[1.5 * t for t in range(T)],
        passes={
            "coarse": PassView(even, alike, entropy=1.0, peak=1.0, cls_share=0.25),
            "fine": PassView(single, apart, entropy=0.0, peak=9.0, cls_share=0.0),
            "autoregressive": PassView(backwards, similar, entropy=0.5, peak=4.5, cls_share=0.5),
        },
        decoded=dict(zip(("actual", "coarse", "fine"), pictures[1:], strict=True)),
        latents={name: np.zeros((T, 4, 4, 4), np.float32) for name in ("coarse", "fine")},
        losses=losses,
    )


_LOSSES = {"coarse": 0.25, "fine": 0.125, "persistence": 0.5}


@pytest.fixture(scope="session")
def evaluation() -> Evaluation:
    """No two figures alike; `shuffled` is undefined, as with one video."""
    return read_document(Evaluation, Path(__file__).with_name("evaluate.json"))


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
def make_report(evaluation: Evaluation, clip: PicturedClip) -> Callable[..., Report]:
    """A report; its fields can be replaced."""
    losses: list[dict[str, float | None]] = [
        {"coarse": 0.2 + n / 100, "fine": 0.1 + n / 100, "persistence": 0.5 + n / 100}
        for n in range(9)
    ]
    frames = [FrameRow(frame=1, losses={"coarse": None, "fine": None}, ratio=UNDEFINED)]
    frames += [FrameRow(frame=t, losses=losses[t], ratio=_ratio(t)) for t in range(2, 9)]
    motion = [
        MotionRow(
            quartile=n, clips=n + 4, videos=n, loss_persistence=0.3 + n / 100, ratio=_ratio(n)
        )
        for n in range(1, 5)
    ]
    report = Report(
        dataset="park",
        date="2031-02-03",
        figures="figures.csv",
        evaluation=evaluation,
        training={"steps": 80, "loss_coarse": 0.25},
        filtering={"inputs": 9, "accepted": 7, "filtered": 1, "quarantined": 1},
        decoding={"videos": 7, "inputs": 20, "decoded": 19, "quarantined": 1, "with_cuts": 3},
        curves=[
            {"samples": str(8 * n), "loss_coarse": f"{1 / n}", "loss_fine": f"{0.9 / n}"}
            for n in range(1, 9)
        ],
        validation=[],
        frames=frames,
        motion=motion,
        by_clip=[
            ClipRow(
                video_id=f"park/{n}.mp4",
                key=f"park-{n}",
                start=None if n == 0 else 5.25 * n,
                losses=losses[n],
                coarse_fine_ratio=None,
                coarse_fine_ratio_dynamic=ratio,
            )
            for n, ratio in enumerate((0.95, None, 1.25, 1.05))
        ],
        clips=[clip],
        shown="All 7 held-out clips.",
        tokens=10,
        parameters={"language model": 1234567, "prediction head": 21, "all": 1234588},
        flops=8_277_731_328,
        clip_frames=8,
        cut=[CutVideo("park/0.mp4", "val", 0.0, 61.5, 4, 2, 7, 3, 1)],
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


def _ratio(digit: int) -> Estimate:
    """A ratio and its interval whose figures end in `digit`."""
    return Estimate(1 + digit / 100, 0.9 + digit / 100, 1.1 + digit / 100)


def places(picture: np.ndarray, within: np.ndarray) -> list[tuple[int, int]]:
    """Every (x, y) at which `within` [H,W,3] shows exactly the picture [h,w,3]."""
    h, w = picture.shape[:2]
    rows, columns = len(within) - h + 1, within.shape[1] - w + 1
    possible = np.ones((rows, columns), bool)
    other = np.argwhere((picture != picture[0, 0]).any(-1))  # what is not background tells most
    for y, x in [(0, 0), *other[:: len(other) // 4 + 1]]:
        possible &= (within[y : y + rows, x : x + columns] == picture[y, x]).all(-1)
    found = [(int(x), int(y)) for y, x in np.argwhere(possible)]
    return [(x, y) for x, y in found if (within[y : y + h, x : x + w] == picture).all()]
