"""The rows of `fvlm experiments`; with a real experiment: tests/pipeline/test_repro.py."""

from typing import Any

from fvlm.cli.experiments import experiment_rows

SECTIONS = ["train", "evaluate"]


def shown(rev: str, name: str | None, values: dict[str, Any]) -> dict[str, Any]:
    """A row as `dvc.api.exp_show` has it."""
    kind = "branch_base" if name else "baseline"
    figures = {
        "statement": "one training: 1.2500 (1.1250 to 1.5000), 6 videos",
        "metrics/evaluate.json:weights": rev,
        "train.lr": 0.1,
        "evaluate.seed": 0.0,
    }
    return {"Experiment": name, "rev": rev, "typ": kind, "State": None} | figures | values


def test_each_experiment_is_held_against_the_commit_that_it_started_from() -> None:
    rows = experiment_rows(
        [
            shown("workspace", None, {"train.lr": 0.2}),
            shown("main", None, {}),
            shown("abcdef1234567", "steep", {"train.lr": 0.3, "evaluate.seed": 1.0}),
            shown("older", None, {"train.lr": 0.5}),
            shown("fedcba7654321", "old", {"train.lr": 0.5, "steps": 3}),
        ],
        SECTIONS,
        {"abcdef1234567": "steep seed 0"},
    )
    result = "one training: 1.2500 (1.1250 to 1.5000), 6 videos"
    steep = ["abcdef123", result, "steep seed 0", "evaluate.seed 0.0 -> 1.0, train.lr 0.1 -> 0.3"]
    assert rows == [
        ["workspace", "", result, "-", "train.lr 0.1 -> 0.2"],
        ["main", "", result, "-", ""],
        ["steep", *steep],
        ["older", "", result, "-", ""],
        ["old", "fedcba765", result, "-", ""],
    ]


def test_one_without_a_result_says_in_what_state_it_is() -> None:
    bare = {"Experiment": "queued", "rev": "abc", "typ": "branch_base", "State": "Queued"}
    (row,) = experiment_rows([bare], SECTIONS, {})
    assert row == ["queued", "abc", "Queued", "-", ""]
