from typing import Any

from fvlm.statistics.arms import ARMS, CONTROLS
from fvlm.statistics.ratio import Estimate, named
from fvlm.statistics.tables import ArmRow, RatioRow, arm_rows, figure, interval, ratio_rows

# The order of the tables; every figure differs from every other one.
RATIOS = (
    "coarse_fine_ratio",
    "coarse_fine_ratio_dynamic",
    "coarse_fine_ratio_early",
    *(f"{arm}_fine_ratio_dynamic" for arm in CONTROLS),
    "autoregressive_fine_ratio_dynamic",
    "persistence_fine_ratio_dynamic",
    "train_coarse_fine_ratio_dynamic",
)


def found() -> dict[str, Any]:
    figures: dict[str, Any] = {"videos": 6, "train_videos": 4}
    for number, arm in enumerate(ARMS):
        figures[f"loss_{arm}"] = 0.1 + number / 100
        figures |= named(f"ratio_{arm}", Estimate(3.0 + number / 10, 0.0, 9.0))
        figures |= named(
            f"ratio_{arm}_dynamic",
            Estimate(2.0 + number / 10, 1.9 + number / 10, 2.1 + number / 10),
        )
    for number, name in enumerate(RATIOS):
        figures |= named(name, Estimate(1.0 + number, 0.5 + number, 1.5 + number))
    return figures


def test_every_arm_has_its_own_loss_and_ratio_with_interval() -> None:
    rows = {row.arm: row for row in arm_rows(found())}
    assert list(rows) == list(ARMS)
    for number, arm in enumerate(ARMS):
        assert (rows[arm].meaning, rows[arm].loss) == (ARMS[arm], 0.1 + number / 100)
        if arm not in ("coarse", "fine"):
            assert (rows[arm].value, rows[arm].low, rows[arm].high) == (
                2.0 + number / 10,
                1.9 + number / 10,
                2.1 + number / 10,
            )
    assert (rows["fine"].value, rows["fine"].low, rows["fine"].high) == (2.0, 1.5, 2.5)
    assert (rows["coarse"].value, interval(rows["coarse"])) == (None, "-")


def test_each_ratio_stands_beside_its_meaning() -> None:
    rows = ratio_rows(found())
    assert [row.name for row in rows] == list(RATIOS)
    assert [row.value for row in rows] == [1.0 + number for number in range(len(RATIOS))]
    assert [interval(row) for row in rows] == [
        f"{0.5 + number:.4f} to {1.5 + number:.4f}" for number in range(len(RATIOS))
    ]
    assert [row.videos for row in rows] == [6] * (len(rows) - 1) + [4]
    assert [row.meaning for row in rows] == [
        "coarse, all frames",
        "coarse, frames 3+",
        "coarse, frames 1 and 2 (cannot gain)",
        "the static query, frames 3+",
        "another video's queries, frames 3+",
        "random queries, frames 3+",
        "frame by frame, frames 3+ (train/inference gap)",
        "copy of the previous latent, frames 3+",
        "coarse on training clips, frames 3+",
    ]


def test_undefined_figures_are_shown_as_such() -> None:
    assert figure(None) == "-"
    assert interval(RatioRow("", "", 1.0, None, None, 1)) == "none"
    assert interval(ArmRow("", "", 1.0, None, None, None)) == "-"
