"""The whole pipeline as a user runs it: real DVC in a git clone, real videos, tiny real models.

One workspace serves the tests of this file, in their order: each builds on the state that the one
before left, as a user's commands do.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.image import imread

from fvlm.model.saved import load_model
from tests.projects import ROOT, VIDEOS, Run, output_of, render
from tests.test_dvc_yaml import outs_of
from tests.tiny import set_params
from tests.tracking.conftest import Database

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def commit(run: Run, message: str) -> None:
    run("git", "add", ".")
    run("git", "commit", "-q", "-m", message)


def ran(output: str) -> list[str]:
    """The stages that a `dvc repro` executed."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def metrics(workspace: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace / f"metrics/{stage}.json").read_text())
    return found


def reused(workspace: Path, stage: str) -> int:
    return int(json.loads((workspace / f".state/timings/{stage}.json").read_text())["reused"])


def test_repro_runs_seven_stages_and_accounts_for_every_video(workspace: Path, run: Run) -> None:
    output = output_of(["dvc", "repro"], workspace, forked=False)
    stages = ["collect", "filter", "decode", "encode", "train", "evaluate", "report"]
    assert ran(output) == stages
    assert "coarse" in (workspace / "reports/index.html").read_text()
    filtered = metrics(workspace, "filter")
    assert filtered["inputs"] == len(VIDEOS) + 2
    assert (filtered["accepted"], filtered["filtered"], filtered["quarantined"]) == (7, 2, 1)
    assert (filtered["reason_too_short"], filtered["reason_too_long"]) == (1, 1)
    decoded = metrics(workspace, "decode")
    assert (decoded["inputs"], decoded["decoded"], decoded["quarantined"]) == (7, 6, 1)
    (note,) = json.loads((workspace / "data/decode/manifest.json").read_text())["quarantined"]
    assert note["video_id"] == "damaged.mp4"
    assert note["reason"]
    assert metrics(workspace, "encode")["encoded"] == 6
    assert metrics(workspace, "train")["steps"] == 16
    evaluated = metrics(workspace, "evaluate")
    assert evaluated["coarse_fine_ratio"] == pytest.approx(
        evaluated["loss_coarse"] / evaluated["loss_fine"], rel=1e-3
    )
    commit(run, "result")


def test_another_clone_makes_the_same_bytes(
    workspace: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of all that the stages write; the clone is of the commit that holds the results.

    One process runs all stages, without DVC. Only places and times of the videos may differ.
    """
    twin = tmp_path_factory.mktemp("twin") / "clone"
    output_of(["git", "clone", "-q", str(workspace), str(twin)], workspace)
    shutil.copytree(workspace / "videos", twin / "videos", dirs_exist_ok=True)
    names = list(STAGES)
    stages = "; ".join(f"import pipeline.{name}; pipeline.{name}.main()" for name in names)
    output_of(["env", "FVLM_TRACKING=off", "python", "-c", stages], twin)
    made = [
        path for name in names[1:] for out in outs_of(STAGES[name]) for path in files(twin, out)
    ]
    assert {path.parts[0] for path in made} == set(OUTPUTS)
    for path in made:
        content = (twin / path).read_bytes().replace(bytes(twin), bytes(workspace))
        assert content == (workspace / path).read_bytes(), path
    assert len(made) == sum(
        len(files(workspace, out)) for name in names[1:] for out in outs_of(STAGES[name])
    )


def files(project: Path, out: str) -> list[Path]:
    """Those of an output, relative to the project."""
    found = [project / out] if (project / out).is_file() else (project / out).rglob("*")
    return sorted(path.relative_to(project) for path in found if path.is_file())


OUTPUTS = ("data", "metrics", "models", "plots", "reports")


def test_figures_in_git_are_results_of_four_digits(workspace: Path, run: Run) -> None:
    tracked = run("git", "ls-files", "metrics").split()
    assert len(tracked) == 5
    for path in tracked:
        for name, value in json.loads((workspace / path).read_text()).items():
            assert not re.search("second|reused|memory|run_id", name), name
            assert "/" not in str(value), name
            if isinstance(value, float):
                assert value == float(f"{value:.4g}"), name


def test_mlflow_holds_curves_result_report_and_card_in_one_run(workspace: Path) -> None:
    database = Database(workspace / "mlflow.db")
    ((name, status),) = database.runs()
    assert re.fullmatch("[0-9a-f]{7} seed 0", name)
    assert status == "FINISHED"
    assert database.steps("coarse_fine_ratio") == list(range(16))
    tags = dict(database.rows("select key, value from tags"))
    assert tags["verdict"] == metrics(workspace, "evaluate")["verdict"]
    assert tags["git_commit"].startswith(name[:7])
    assert tags["weights"] != tags["trained_weights"]
    for end in ("", "_low", "_high"):
        assert database.steps(f"evaluation/coarse_fine_ratio_dynamic{end}") == [0]
    params = dict(database.rows("select key, value from params"))
    assert {"decode.frame_size": "32", "train.batch_size": "4"}.items() <= params.items()
    folder = workspace / ".state/mlflow/artifacts"
    sent = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    names = ("figures.csv", "index.html", "model_card.md")
    assert sent == {name: (workspace / "reports" / name).read_bytes() for name in names}
    run_id = database.rows("select run_uuid from runs")[0][0].encode()
    made = [path for part in OUTPUTS for path in (workspace / part).rglob("*") if path.is_file()]
    assert not [path for path in made if run_id in path.read_bytes()]


def test_trained_model_loads_with_one_call(workspace: Path) -> None:
    model = load_model(workspace / "models/foveated")
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) > 1_000_000


def test_the_examples_of_the_docs_go_from_a_video_to_pictures(workspace: Path, run: Run) -> None:
    """The one in Python, then the cells of the notebook, as they are printed."""
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/python.md")]
    shards, example, _hub = re.findall(r"```python\n(.*?)```", "\n".join(pages), re.DOTALL)
    notebook = json.loads((ROOT / "docs/from_video_to_verdict.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    said = run("python", "-c", "\n".join([example, shards, *cells]))
    assert ") A bright square moves over noise.\n" in said  # the only caption
    picture = imread(workspace / "look.png")
    assert picture.std() > 0
    (workspace / "look.png").unlink()
    for line in ("short.mp4: filtered, ", "tokens of each frame: ", "this clip alone", "verdict"):
        assert line in said


def test_verdict_is_printed_with_controls_and_interval(run: Run) -> None:
    output = run("python", "-m", "fvlm", "verdict")
    arms = ("coarse pass", "fine pass", "random queries", "previous latent")
    for word in (*arms, "held-out", "interval"):
        assert word in output


def test_nothing_changed_runs_only_collect(workspace: Path, run: Run) -> None:
    before = (workspace / "dvc.lock").read_bytes()
    assert ran(run("dvc", "repro")) == ["collect"]
    assert (workspace / "dvc.lock").read_bytes() == before


@pytest.mark.usefixtures("restored")
def test_experiment_with_another_batch_size_costs_the_same_samples(
    workspace: Path, run: Run
) -> None:
    """A batch larger than the corpus spans epochs; the budget counts clips, not steps."""
    output = run("dvc", "exp", "run", "-S", "train.batch_size=64", "--name", "large-batch")
    assert ran(output) == ["collect", "train", "evaluate", "report"]
    assert metrics(workspace, "train")["steps"] == 1
    assert metrics(workspace, "train")["samples"] == 64
    difference = run("dvc", "metrics", "diff")
    (statement,) = (line for line in difference.splitlines() if " statement " in line)
    assert len(re.findall(r"inconclusive: \d\.\d{4}.*?, \d videos?", statement)) == 2
    assert max(map(len, difference.splitlines())) < 180  # long sentences widen every row
    assert "large-batch" in run("dvc", "exp", "show")
    table = run("python", "-m", "fvlm", "experiments")
    (row,) = (line for line in table.splitlines() if line.startswith("│ large-batch"))
    assert "inconclusive: " in row
    assert re.search(r"\d\.\d{4} to \d\.\d{4}", row)
    assert re.search(r"train.batch_size \S+ -> 64", row)
    assert "large-batch seed 0" in row
    assert max(map(len, table.splitlines())) <= 160
    run("dvc", "plots", "show")
    assert "coarse_fine_ratio_low" in (workspace / "dvc_plots/index.html").read_text()
    run("dvc", "plots", "diff", "HEAD", "workspace")
    page = (workspace / "dvc_plots/index.html").read_text()
    for shown in ("loss_coarse", "coarse_fine_ratio_low", "plots/controls.png"):
        assert shown in page
    for revision in ("HEAD", "workspace"):  # the curves of both, against clips seen
        assert f'"rev": "{revision}"' in page
    assert '"field": "samples"' in page
    assert 'src="http' not in page  # what draws the charts is in the page
    assert ran(run("dvc", "repro")) == ["collect"]  # what the experiment left is up to date


def test_going_back_restores_from_the_cache(workspace: Path, run: Run) -> None:
    output = run("dvc", "repro")
    assert ran(output) == ["collect"]
    assert metrics(workspace, "train")["steps"] == 16


def test_computing_all_shards_again_gives_identical_bytes(workspace: Path, run: Run) -> None:
    def shards() -> dict[str, bytes]:
        return {
            f"{stage}/{path.name}": path.read_bytes()
            for stage in ("decode", "encode")
            for path in (workspace / "data" / stage).iterdir()
        }

    before = shards()
    for stage in ("decode", "encode"):
        run("python", "-m", "fvlm", "forget", stage)
    run("python", "-m", "pipeline.decode")
    run("python", "-m", "pipeline.encode")
    assert reused(workspace, "decode") == reused(workspace, "encode") == 0
    assert shards() == before
    run("git", "checkout", "-q", ".")


@pytest.mark.usefixtures("restored")
def test_a_filter_edit_and_a_new_video_leave_shards_of_other_clips_alone(
    workspace: Path, run: Run
) -> None:
    render(workspace / "videos" / "new.mp4", "libx264", 4.0, seed=99)
    set_params(workspace, {"filter": {"max_seconds": 4.75}})
    assert ran(run("dvc", "repro", "encode")) == ["collect", "filter", "decode", "encode"]
    assert metrics(workspace, "filter")["accepted"] == 7  # one came, one went
    assert metrics(workspace, "encode")["encoded"] == 6  # without the damaged one
    assert reused(workspace, "decode") > 0
    assert reused(workspace, "encode") > 0
    (workspace / "videos" / "new.mp4").unlink()


@pytest.mark.usefixtures("restored")
def test_invalid_parameters_are_all_named(workspace: Path, run: Run) -> None:
    set_params(
        workspace,
        {"train": {"batch_size": 64.5, "warmup_samples": 5000, "lr_max": 0.1}},
    )
    output = run("dvc", "repro", code=255)
    assert "train.batch_size: expected int, got 64.5" in output
    assert "train.lr_max: unknown key; did you mean `lr`?" in output


@pytest.mark.usefixtures("restored")
def test_layer_that_does_not_fit_is_refused(workspace: Path, run: Run) -> None:
    set_params(workspace, {"model": {"query_layers": 2}})
    output = run("dvc", "repro", code=255)
    assert "encode.layer, model.query_layers: their sum must be 3" in output
    assert "got 2 + 2; nearest: model.query_layers: 1 or encode.layer: 1" in output


@pytest.mark.usefixtures("restored")
def test_empty_folder_is_a_clear_error(workspace: Path, run: Run) -> None:
    (workspace / "nothing").mkdir()
    set_params(workspace, {"collect": {"source": "nothing"}})
    output = run("dvc", "repro", code=255)
    assert "collect.source" in output
    assert "nothing" in output


@pytest.mark.usefixtures("restored")
def test_stopped_training_stays_unfinished_and_continues(workspace: Path, run: Run) -> None:
    """Out of time: exit code 75, no result; the chunks together equal one run."""
    expected = (workspace / "plots/train.csv").read_bytes()
    weights = (workspace / "models/foveated/model.safetensors").read_bytes()
    run("python", "-m", "fvlm", "forget", "train")
    set_params(workspace, {"train": {"max_hours": 1e-9}})
    output = run("dvc", "repro", "train", code=255)
    assert "unfinished: stopped after step 1 of 16" in output
    assert "run again to continue" in output
    set_params(workspace, {"train": {"max_hours": 23.0}})
    assert ran(run("dvc", "repro", "train")) == ["collect", "train"]
    assert (workspace / "plots/train.csv").read_bytes() == expected
    assert (workspace / "models/foveated/model.safetensors").read_bytes() == weights
