"""Every row of a table holds the figures of its own arm: no two of them are the same."""

from pathlib import Path

import pytest

from fvlm.core.document import flatten, read_document
from fvlm.statistics.arms import ARMS, CONTROLS
from fvlm.statistics.evaluation import Evaluation
from fvlm.statistics.ratio import UNDEFINED, Estimate
from fvlm.statistics.tables import arm_rows, charted, figure, ratio_cells, ratio_rows

EVALUATION = Path(__file__).parents[1] / "report/evaluate.json"


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return read_document(Evaluation, EVALUATION)


def test_every_arm_has_its_own_loss_and_ratio(evaluation: Evaluation) -> None:
    figures = flatten(evaluation)
    rows = {row.arm: row for row in arm_rows(evaluation)}
    assert list(rows) == list(ARMS)
    for arm, row in rows.items():
        assert (row.meaning, row.loss) == (ARMS[arm], figures[f"loss_{arm}"])
        if arm == "coarse":
            assert row.ratio is None
            continue
        assert row.ratio is not None
        name = "coarse_fine_ratio_dynamic" if arm == "fine" else f"ratio_{arm}_dynamic"
        assert row.ratio.value == figures[name]


def test_the_ratio_that_the_verdict_rests_on_has_those_of_its_trainings(
    evaluation: Evaluation,
) -> None:
    by_seed = {3: Estimate(1.02, None, None), 5: UNDEFINED, 7: Estimate(1.04, 1.0, 1.1)}
    held_out = evaluation.held_out.model_copy(update={"by_seed": by_seed})
    rows = ratio_rows(evaluation.model_copy(update={"held_out": held_out}))
    assert {row.meaning: row.seeds for row in rows if row.seeds} == {
        "coarse, frames 3+": (1.02, 1.04)
    }


def test_each_ratio_stands_beside_its_meaning(evaluation: Evaluation) -> None:
    names = {
        "coarse_fine_ratio": "coarse, all frames",
        "coarse_fine_ratio_dynamic": "coarse, frames 3+",
        "coarse_fine_ratio_early": "coarse, frames 1 and 2 (cannot gain)",
        "coarse_fine_ratio_dynamic_over_frame_1": "coarse, relative to frame 1 (guard)",
        "coarse_fine_ratio_dynamic_over_frame_2": "coarse, relative to frame 2 (guard)",
        "coarse_fine_ratio_cls_masked_dynamic": "coarse, CLS masked in both passes, frames 3+",
        "static_in_fine_fine_ratio_dynamic": "the static query, frames 3+",
        "shuffled_fine_ratio_dynamic": "another video's queries, frames 3+",
        "random_fine_ratio_dynamic": "random queries, frames 3+",
        "autoregressive_fine_ratio_dynamic": "frame by frame (train/inference gap), frames 3+",
        "persistence_fine_ratio_dynamic": "copy of the previous latent, frames 3+",
        "ar1_fine_ratio_dynamic": "AR(1) of the latents, frames 3+",
        "mean_fine_ratio_dynamic": "mean latent, frames 3+",
        "train_coarse_fine_ratio_dynamic": "coarse on training clips, frames 3+",
        "train_static_in_fine_fine_ratio_dynamic": "the static query on training clips, frames 3+",
        "train_random_fine_ratio_dynamic": "random queries on training clips, frames 3+",
        "train_shuffled_fine_ratio_dynamic": "another video's queries on training clips, frames 3+",
    }
    figures, rows = flatten(evaluation), ratio_rows(evaluation)
    assert [row.meaning for row in rows] == list(names.values())
    assert [row.ratio.value for row in rows] == [figures[name] for name in names]
    assert [row.ratio.low for row in rows] == [figures[f"{name}_low"] for name in names]
    assert [row.videos for row in rows] == [6] * (len(rows) - 4) + [8] * 4


def test_a_chart_leaves_out_what_would_flatten_it(evaluation: Evaluation) -> None:
    rows = ratio_rows(evaluation)
    left_out = [row.arm for row in rows if row not in charted(rows)]
    assert left_out == ["persistence", "ar1", "mean"]
    assert {row.arm for row in charted(rows)} >= set(CONTROLS)


def test_undefined_figures_are_shown_as_such() -> None:
    assert figure(None) == "-"
    assert ratio_cells(None) == ratio_cells(UNDEFINED) == ["-", "-"]
    assert ratio_cells(Estimate(1.0, None, None)) == ["1.0000", "none"]
    assert ratio_cells(Estimate(1.0, 0.5, 1.5)) == ["1.0000", "0.5000 to 1.5000"]
