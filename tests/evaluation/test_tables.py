from fvlm.evaluation.arms import ARMS, CONTROLS
from fvlm.evaluation.tables import RatioRow, arm_rows, figure, interval, ratio_rows

FOUND = (
    {f"loss_{arm}": 0.5 for arm in ARMS}
    | {f"ratio_{arm}{end}": 0.9 for arm in ARMS for end in ("", "_dynamic")}
    | {
        f"{name}{end}": value
        for name in (
            "coarse_fine_ratio",
            "coarse_fine_ratio_dynamic",
            "train_coarse_fine_ratio_dynamic",
            *(f"{arm}_fine_ratio_dynamic" for arm in CONTROLS),
        )
        for end, value in (("", 1.1), ("_low", 1.0), ("_high", 1.2))
    }
    | {"videos": 6, "train_videos": 4}
)


def test_every_arm_has_a_row_and_coarse_is_its_own_measure() -> None:
    rows = {row.arm: row for row in arm_rows(FOUND)}
    assert list(rows) == list(ARMS)
    assert (rows["coarse"].overall, rows["coarse"].dynamic) == (1.0, 1.0)
    assert (rows["fine"].overall, rows["random"].overall) == (1.1, 0.9)


def test_the_ratio_and_every_control_have_an_interval() -> None:
    rows = ratio_rows(FOUND)
    assert len(rows) == 3 + len(CONTROLS)
    assert {interval(row) for row in rows} == {"1.0000 to 1.2000"}
    assert [row.videos for row in rows] == [6] * (len(rows) - 1) + [4]


def test_undefined_figures_are_shown_as_such() -> None:
    assert figure(None) == "-"
    assert interval(RatioRow("", "", 1.0, None, None, 1)) == "none"
