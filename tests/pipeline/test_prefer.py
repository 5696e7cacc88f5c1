"""The prefer stage on real shards, from a tiny model that instruct left: one run, and in parts."""

import csv
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fvlm.core.errors import FvlmError, ShardError
from fvlm.core.io import read_json
from fvlm.core.params import read_yaml
from fvlm.model.saved import load_model
from pipeline import instruct, paths, prefer, train
from tests.pipeline.conftest import CLIPS, ROOT, asked, write_questions
from tests.pipeline.test_instruct import assert_parts_equal_one_run, handed_back
from tests.tiny import set_params


def test_it_begins_with_pairs_that_are_coins_and_each_gains(
    answering: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    instruct.main()
    set_params(answering, {"prefer": {"max_samples": 40, "lr": 1e-2, "beta": 1.0}})
    prefer.main()
    rows = [
        {name: float(text) for name, text in row.items()}
        for row in csv.DictReader(paths.PREFER_CURVES.read_text().splitlines())
    ]
    for name in ("coarse", "fine"):
        assert rows[0][f"loss_{name}"] == pytest.approx(math.log(2), abs=1e-5)
        assert rows[-1][f"loss_{name}"] < 0.9 * math.log(2)
        assert rows[-1][f"gained_{name}"] == 1
    figures = read_json(paths.PREFER_METRICS)
    told = {
        f"{what}_{name}" for what in ("loss", "gained", "chosen") for name in ("coarse", "fine")
    }
    assert set(figures) == {"steps", "samples", "questions", "questions_too_long"} | told
    assert (figures["questions"], figures["questions_too_long"]) == (CLIPS, 0)
    before, after = (load_model(root) for root in (paths.INSTRUCTED, paths.PREFERRED))
    assert after.config.chat == before.config.chat
    changed = after.to_query.weight - before.to_query.weight
    assert torch.count_nonzero(changed) > 0
    capfd.readouterr()
    prefer.main()
    assert handed_back("prefer") in capfd.readouterr().out


def test_parts_equal_one_run(answering: Path) -> None:
    """What the first model said is kept as long as it is needed, and no longer."""
    set_params(answering, {"train": {"schedule": "constant"}})  # a longer one has the same folder
    instruct.main()
    assert_parts_equal_one_run("prefer", prefer.main)
    assert not list(answering.glob(".state/prefer/*/reference-*"))
    set_params(answering, {"train": {"max_hours": 1e-9}, "prefer": {"max_samples": 20}})
    with pytest.raises(SystemExit, match="75"):
        prefer.main()
    assert len(list(answering.glob(".state/prefer/*/reference-*"))) == 1


@pytest.mark.usefixtures("answering")
def test_without_a_rejected_answer_or_a_model_the_message_says_so() -> None:
    with pytest.raises(FvlmError, match=r"models/instructed: no such folder"):
        prefer.main()
    instruct.main()
    write_questions(asked(rejected=""))
    with pytest.raises(ShardError, match=r"has no question with a rejected answer about these 6"):
        prefer.main()
    assert not paths.PREFERRED.exists()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["features-rtx4090", "frames-phase1"])
def test_the_rates_of_a_preset_take_two_steps_at_real_size(answering: Path, preset: str) -> None:
    """Of all three stages: SmolLM2-135M's shape and head with random weights, in bfloat16."""
    values = read_yaml(ROOT / f"presets/{preset}.yaml")
    two = {"batch_size": 2, "max_samples": 4, "warmup_samples": 2}
    changes = {name: values[name] | two for name in ("train", "instruct", "prefer")}
    changes |= {"model": values["model"] | {"llm": "untrained:576x30"}}
    few = {
        "input": "features",
        "encoder_lr": 0.0,
        "num_frames": 3,
        "gradient_accumulation_steps": 1,
        "seeds": [0],
    }
    changes["train"] |= few
    changes["instruct"] |= {"seeds": [0]}
    set_params(answering, changes)
    for stage, metrics in ((train, paths.TRAIN_METRICS), (instruct, paths.INSTRUCT_METRICS)):
        stage.main()
        assert read_json(metrics)["steps"] == 2
    prefer.main()
    figures = read_json(paths.PREFER_METRICS)
    assert figures["steps"] == 2
    assert figures["loss_fine"] == pytest.approx(math.log(2), abs=0.05)  # as it began, nearly
    models = [load_model(root) for root in (paths.MODEL, paths.INSTRUCTED, paths.PREFERRED)]
    assert [model.language.config.num_hidden_layers for model in models] == [30] * 3
    for before, after in pairwise(models):
        change = (after.to_query.weight - before.to_query.weight).abs().max()
        assert 0 < change < 1e-3
