"""`dvc.yaml` is code: its dependencies, parameters and paths are those of the stages' modules.

And DVC reads and writes it: its run cache must see every parameter, and leave the text as it is.
"""

import ast
import importlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from dvc.stage import Stage
from dvc.stage.cache import _can_hash, _get_cache_hash
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import load_yaml

from fvlm.core.params import PARAMS, Params, read_yaml
from pipeline import paths
from tests.imports import MODULES, ROOT, parsed, reachable

FILES = ("answers/dvc.yaml", "dvc.yaml", "uncertainty/dvc.yaml")
STAGES: dict[str, dict[str, Any]] = {
    name: entry
    for file in FILES
    for name, entry in yaml.safe_load((ROOT / file).read_text())["stages"].items()
}
CODE = ("fvlm/", "pipeline/", "assets/")
YAML = sorted(
    str(path.relative_to(ROOT))
    for pattern in (
        "*.yaml",
        "*.lock",
        "answers/*",
        "presets/*.yaml",
        "uncertainty/*",
        ".ci/*.y*ml",
    )
    for path in ROOT.glob(pattern)
)
# What collect, which always runs, says of the stages behind it: a dependency would be a circle.
LOOKED_BACK_AT = {"collect": {str(paths.MANIFEST), str(paths.FRAMES), str(paths.MODEL)}}
UNSEEN = {"size", "nfiles"}  # keys that DVC leaves out of what names a run, wherever they stand


def folder_of(module: str) -> str:
    """What dvc.yaml names for a module: its folder, or the file itself of a stage."""
    path = MODULES[module].relative_to(ROOT)
    return str(path.parent if path.parts[0] == "fvlm" else path)


def outs_of(entry: dict[str, Any]) -> list[str]:
    """Paths of all that a stage writes."""
    return [
        next(iter(out)) if isinstance(out, dict) else out
        for kind in ("outs", "metrics", "plots")
        for out in entry.get(kind, [])
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_are_the_folders_of_the_imports(stage: str) -> None:
    declared = {dep for dep in STAGES[stage]["deps"] if dep.startswith(("fvlm/", "pipeline/"))}
    used = reachable(f"pipeline.{stage}", deep=True) & set(MODULES)
    assert declared == {folder_of(module) for module in used}


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_the_sections_that_the_stage_loads(stage: str) -> None:
    """And keys of other sections that it holds against what was recorded; as DVC writes them."""
    module = importlib.import_module(f"pipeline.{stage}")
    sections: type[Params] = module.Sections
    recorded = getattr(module, "RECORDED", ())
    assert STAGES[stage]["params"] == sorted([*sections.model_fields, *recorded])


@pytest.mark.parametrize("stage", STAGES)
def test_paths_are_those_that_the_stage_imports(stage: str) -> None:
    """Every artefact that is declared is used by the stage, and the other way round."""
    tree = parsed(MODULES[f"pipeline.{stage}"])
    used = {
        str(getattr(paths, alias.name))
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "pipeline.paths"
        for alias in node.names
    }
    entry = STAGES[stage]
    # What pretrained parts hold is read from their sources; see fvlm/weights/listing.py.
    code = (*CODE, f"{paths.WEIGHTS}/")
    declared = {dep for dep in entry["deps"] if not dep.startswith(code)} | set(outs_of(entry))
    used -= LOOKED_BACK_AT.get(stage, set())
    inside = {(use, name) for use in used for name in declared if Path(use).is_relative_to(name)}
    assert {use for use, _ in inside} == used
    assert {name for _, name in inside} == declared


@pytest.mark.parametrize("stage", STAGES)
def test_command_runs_the_module_of_the_working_directory(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"python -m pipeline.{stage}"


def test_pictures_and_metrics_stay_in_git_and_all_else_in_dvcs_cache() -> None:
    """A plain output that DVC does not keep would switch the run cache of its stage off."""
    ignored = (ROOT / "plots/.gitignore").read_text().splitlines()
    for entry in STAGES.values():
        for kind in ("metrics", "plots"):
            for out in entry.get(kind, []):
                assert next(iter(out.values())) == {"cache": False}
        for out in entry.get("outs", []):
            if isinstance(out, dict):  # a listing that stays when its stage fails
                assert entry["always_changed"]
                assert list(out.values()) == [{"persist": True}]
            elif out.startswith("plots/"):
                assert f"/{Path(out).name}" in ignored
    kept = {str(out) for entry in STAGES.values() for out in entry.get("outs", [])}
    assert {f"plots{line}" for line in ignored} == {out for out in kept if out.startswith("plots/")}


def copy_pipelines(root: Path) -> Repo:
    """The real pipelines and parameters under DVC, with dependencies of no meaning."""
    for file in (*FILES, PARAMS):
        (root / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    for entry in STAGES.values():
        for dep in entry["deps"]:
            path = root / dep
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dep)
    return Repo.init(str(root), no_scm=True)


def test_earlier_parameters_bring_earlier_results_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There and back again: DVC keeps runs of train, evaluate and uncertainty as dvc.yaml has them.

    Only their commands are others: each copies params.yaml to all outputs of its stage.
    """
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", logger="dvc")
    copy_pipelines(tmp_path).close()
    for name in ("train", "evaluate", "uncertainty"):
        outs = " ".join(outs_of(STAGES[name]))
        script = f"for out in {outs}; do rm -rf $out; cp params.yaml $out; done\n"
        (tmp_path / f"{name}.sh").write_text(script)
    for file in FILES:
        text = (tmp_path / file).read_text()
        (tmp_path / file).write_text(re.sub(r"python -m pipeline\.(\w+)", r"sh \1.sh", text))
    targets = ["train", "evaluate", "uncertainty/dvc.yaml:uncertainty"]
    first, ran = (tmp_path / PARAMS).read_text(), list[list[str]]()
    for text in (first, re.sub(r"(lr: 1|  p: 0)\.[01]", r"\1.2", first), first):
        (tmp_path / PARAMS).write_text(text)
        caplog.clear()
        with Repo(str(tmp_path)) as repo:
            repo.reproduce(targets, single_item=True)
        ran.append([line for line in caplog.messages if line.startswith(("Running", "Stage"))])
        for name in ("train", "evaluate", "uncertainty"):
            for out in outs_of(STAGES[name]):
                assert (tmp_path / out).read_text() == text, out
    assert ran[0] == ran[1] == [f"Running stage '{target}':" for target in targets]
    skipped = "is cached - skipping run, checking out outputs"
    assert ran[2] == [f"Stage '{target}' {skipped}" for target in targets]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stage]]:
    """Every stage as DVC loads it, with dependencies of no meaning and the real parameters."""
    with copy_pipelines(tmp_path_factory.mktemp("dvc")) as repo:
        loaded = {stage.name: stage for stage in repo.index.stages}
        for stage in loaded.values():
            stage.save_deps()
        yield loaded


def keys_of(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a document, each with those above it."""
    for key, value in values.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from keys_of(value, (*prefix, key))


def params_of(stage: Stage) -> ParamsDependency:
    """The parameters of a stage, as DVC holds them: values by section."""
    (found,) = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
    return found


def name_of_run(stage: Stage, section: str, changes: dict[str, Any] | str = "") -> str:
    """The name under which DVC keeps a run of the stage with `changes` in one section or key."""
    held = params_of(stage).hash_info.value
    assert isinstance(held, dict)
    before = held[section]
    if changes:
        held[section] = before | changes if isinstance(changes, dict) else changes
    try:
        return str(_get_cache_hash(to_single_stage_lockfile(stage), key=True))
    finally:
        held[section] = before


def test_every_parameter_of_every_section_is_part_of_the_name_of_a_run(
    stages: dict[str, Stage],
) -> None:
    """Else DVC would hand back the results of other parameters."""
    assert set(stages) == set(STAGES)
    used = Counter[str]()
    for name, stage in stages.items():
        if STAGES[name].get("always_changed"):
            continue  # DVC keeps no run of it
        assert _can_hash(stage), f"DVC keeps no run of {name}"
        for section in STAGES[name]["params"]:
            if "." in section:  # a single key of another stage's section
                assert name_of_run(stage, section) != name_of_run(stage, section, "another")
                continue
            values = params_of(stage).hash_info.value[section]
            runs = {name_of_run(stage, section, {key: "another"}) for key in values}
            runs.add(name_of_run(stage, section, {}))
            assert len(runs) == len(values) + 1, (name, section)
            used[section] += 1
    # Each section has a stage that is run again; `calibrate` has a command of its own.
    assert set(used) == set(read_yaml(ROOT / PARAMS)) - {"calibrate"}


def test_keys_that_dvc_does_not_see_are_not_used(stages: dict[str, Stage]) -> None:
    train = stages["train"]
    for key in sorted(UNSEEN):  # the reason for this test
        assert name_of_run(train, "train", {key: 1}) == name_of_run(train, "train", {key: 2})
    documents: list[dict[str, Any]] = [read_yaml(ROOT / PARAMS), *STAGES.values()]
    for document in documents:
        for place in keys_of(document):
            assert not UNSEEN & set(place), ".".join(place)


@pytest.mark.parametrize("file", YAML)
def test_every_yaml_file_is_the_same_document_for_every_reader(file: str) -> None:
    """Of lock files, which DVC writes, not for YAML 1.1: there a rate of `1e-05` is text."""
    document = read_yaml(ROOT / file)
    assert document
    assert document == load_yaml(ROOT / file)
    if not file.endswith(".lock"):
        assert document == yaml.safe_load((ROOT / file).read_text())


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_changes_only_the_line_it_means_to(stage: str, stages: dict[str, Stage]) -> None:
    """As `dvc freeze` and `dvc unfreeze` do."""
    loaded = stages[stage]
    path = Path(loaded.dvcfile.path)
    before = path.read_text()
    try:
        for frozen, added in ((True, ["    frozen: true"]), (False, [])):
            loaded.frozen = frozen
            loaded.dvcfile.dump(loaded, update_lock=False)
            found = Counter(path.read_text().splitlines())
            assert found == Counter([*before.splitlines(), *added])
        assert path.read_text() == before
    finally:
        path.write_text(before)


def test_an_experiments_parameters_change_only_their_own_lines(tmp_path: Path) -> None:
    """As `dvc exp run -S` does."""
    path = tmp_path / PARAMS
    shutil.copy(ROOT / PARAMS, path)
    before = path.read_text().splitlines()
    apply_overrides(path, ["train.batch_size=64", "train.seeds=[0,1]", "uncertainty.p=0.25"])
    after = path.read_text().splitlines()
    changed = {
        "  batch_size: 8             # clips in one forward, over all processes": [
            "  batch_size: 64            # clips in one forward, over all processes"
        ],
        "  p: 0.1                    # probability of dropping a value": [
            "  p: 0.25                   # probability of dropping a value"
        ],
    }
    assert set(changed) <= set(before)
    expected = [line for old in before for line in changed.get(old, [old])]
    row = next(row for row, line in enumerate(expected) if line.startswith("  seeds:"))
    assert expected[row + 1] == "  - 0"
    assert after == [*expected[: row + 2], "  - 1", *expected[row + 2 :]]
