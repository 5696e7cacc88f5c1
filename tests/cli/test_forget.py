"""A stage makes its work anew when it is told to, although the work is kept; as a user calls it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fvlm.cli import forget
from fvlm.cli.forget import STAGES
from fvlm.core.io import read_json
from fvlm.core.kept import remade
from fvlm.training.finished import FinishedTrainings
from pipeline.paths import FRAMES
from tests.projects import ROOT

Call = Callable[..., str]
TRAININGS = ("train", "instruct", "prefer")


def reused(copy: Path) -> int:
    return int(read_json(copy / ".state/timings/decode.json")["reused"])


def test_a_stage_that_is_told_to_forget_makes_its_shards_once_more(copy: Path, call: Call) -> None:
    first = {path.name: path.read_bytes() for path in (copy / FRAMES).iterdir()}
    assert "run `dvc repro -f decode`" in call("fvlm", "forget", "decode")
    for expected in (0, 2):
        call("pipeline.decode")
        assert reused(copy) == expected
    assert {path.name: path.read_bytes() for path in (copy / FRAMES).iterdir()} == first


def test_a_stage_that_is_told_to_forget_does_not_speak_for_others(copy: Path, call: Call) -> None:
    call("fvlm", "forget", "filter")
    call("pipeline.decode")
    assert reused(copy) == 2


def test_an_unknown_stage_is_named_with_those_that_there_are(copy: Path, call: Call) -> None:
    said = call("fvlm", "forget", "collect", code=2)
    assert "invalid choice: 'collect'" in said
    for stage in ("filter", "decode", "encode", "train", "instruct", "prefer", "uncertainty"):
        assert stage in said
    assert not (copy / ".state/forgotten").exists()


def test_what_is_told_to_run_is_a_stage_of_dvcs_own_files() -> None:
    """`dvc repro STAGE` finds those of dvc.yaml alone."""
    for stage, target in STAGES.items():
        file, _, name = target.rpartition(":")
        document = yaml.safe_load((ROOT / (file or "dvc.yaml")).read_text())
        assert name == stage in document["stages"]


def test_the_stages_that_train_keep_their_work_under_their_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is forgotten of one is handed back of the others, and of it after its next run."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")

    def known() -> list[str]:
        stores = {stage: FinishedTrainings(stage, Path("out")) for stage in TRAININGS}
        return [
            stage
            for stage, store in stores.items()
            if store.restore("abc", Path("again"), family="f", steps=1)
        ]

    for stage in TRAININGS:
        store = FinishedTrainings(stage, Path("out"))
        store.remember("abc", Path("model"), family="f", steps=1)
    assert known() == list(TRAININGS)
    forget.main(["instruct"])
    assert "`dvc repro -f answers/dvc.yaml:instruct`" in capsys.readouterr().out
    assert known() == ["train", "prefer"]
    remade("instruct")
    assert known() == list(TRAININGS)
