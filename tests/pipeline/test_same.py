"""`fvlm same train` trains the first steps of every stage again whose models are there."""

from pathlib import Path

import pytest

from fvlm.cli import same
from fvlm.core.errors import FvlmError
from fvlm.core.io import read_json, read_jsonl, write_json
from fvlm.training.finished import CURVE
from pipeline import instruct, paths, prefer, train
from tests.tiny import set_params

MODELS = (paths.MODEL, paths.INSTRUCTED, paths.PREFERRED)
OLD = "0" * 20  # the code's hash before an edit


@pytest.fixture
def trained(answering: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models of all three stages, made by code that was edited since then.

    What is joined goes to a file of the test's own, not to the checkout's.
    """
    monkeypatch.setattr(same, "JOINS", answering / "same.jsonl")
    set_params(answering, {"instruct": {"start": str(paths.MODEL)}})
    for stage in (train, instruct, prefer):
        stage.main()
    for folder in MODELS:
        was_trained_by(folder, OLD)
    return answering


def was_trained_by(folder: Path, made_by: str) -> None:
    config = folder / "config.json"
    write_json(config, read_json(config) | {"trained_by": made_by})


def change_curve(folder: Path) -> None:
    curve = folder / CURVE
    header, first, *rest = curve.read_text().splitlines()
    number, samples, loss, *others = first.split(",")
    assert header.startswith("step,samples,loss,")
    row = ",".join([number, samples, str(float(loss) * 1.01), *others])
    curve.write_text("\n".join([header, row, *rest, ""]))


def test_equal_steps_of_all_are_joined(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same.main(["train"])
    assert "train: 7 steps trained again: equal bytes" in capsys.readouterr().out
    (row,) = read_jsonl(trained / "same.jsonl")
    assert (row["stage"], row["old"]) == ("train", OLD)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("stage", range(3))
def test_a_step_that_differs_in_any_stage_is_refused(stage: int) -> None:
    title = ("train", "instruct", "prefer")[stage]
    change_curve(MODELS[stage])
    with pytest.raises(FvlmError, match=f"1 of 7 differ, such as step 0 of {title}: this edit"):
        same.main(["train"])


@pytest.mark.usefixtures("trained")
def test_models_of_other_code_are_not_handed_back_and_not_compared(
    capsys: pytest.CaptureFixture[str],
) -> None:
    was_trained_by(paths.PREFERRED, "1" * 20)
    change_curve(paths.PREFERRED)
    same.main(["train"])
    assert "train: 4 steps trained again: equal bytes" in capsys.readouterr().out
