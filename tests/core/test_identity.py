"""Names of kept work change with every deciding line, and with nothing else."""

import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvlm.core import identity
from fvlm.core.identity import NEUTRAL, canonical, closure, hash_source, made_by
from fvlm.core.io import write_jsonl
from tests.imports import MODULES, ROOT, reachable

# What makes the bytes that each stage keeps.
ROOTS = {
    "filter": ("fvlm.video.probe:probe_request",),
    "decode": ("fvlm.video.decode:decode_request", "fvlm.shards.write:write_shard"),
    "encode": ("fvlm.encoders.shards:encode_clips", "fvlm.shards.write:write_shard"),
    "train": ("fvlm.training.trainings:run_training",),
    "uncertainty": ("fvlm.uncertainty.sampling:score_frames",),
    "collect": ("fvlm.corpus.rendered_files:render_clip",),
}
MODULES_OF = {stage: tuple(root.split(":")[0] for root in roots) for stage, roots in ROOTS.items()}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, which names are made from."""
    shutil.copytree(ROOT / "fvlm", tmp_path / "fvlm", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    monkeypatch.setattr(identity, "JOINS", tmp_path / "same.jsonl")
    return tmp_path


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Names that were made here are not those of other tests."""
    yield
    identity._described.cache_clear()


def names() -> dict[str, str]:
    """As a process that starts now names its work."""
    identity._described.cache_clear()
    return {stage: made_by(*roots) for stage, roots in ROOTS.items()}


def edit(path: Path, text: str) -> None:
    """Write it before the next process starts."""
    path.write_text(text)
    identity._content.cache_clear()


def test_a_changed_token_in_any_file_of_a_closure_changes_the_name(copy: Path) -> None:
    before = names()
    closures = {stage: closure(modules) for stage, modules in MODULES_OF.items()}
    for module in sorted(set().union(*closures.values())):
        path = copy.joinpath(*module.split(".")).with_suffix(".py")
        if not path.exists():
            continue  # a package's empty __init__.py
        text = path.read_text()
        edit(path, f"{text}\nAPPENDED = 1\n")
        expected = {stage for stage, modules in closures.items() if module in modules}
        assert {stage for stage, name in names().items() if name != before[stage]} == expected
        edit(path, f"# said\n{text}\n# more")
        assert names() == before, module
        edit(path, text)


def test_a_docstring_changes_nothing_and_an_operator_does(copy: Path) -> None:
    path, before = copy / "fvlm/model/film_head.py", names()
    text = path.read_text()
    first = text.index('"""')
    edit(path, text[: first + 3] + "Other words. " + text[first + 3 :])
    assert names() == before
    assert "GELU" in text
    edit(path, text.replace("GELU", "ReLU", 1))
    changed = {stage for stage, name in names().items() if name != before[stage]}
    assert changed == {"train"}


def test_a_new_module_and_a_data_file_count_by_themselves(copy: Path) -> None:
    before = names()
    (copy / "fvlm/video/extra.py").write_text("SHARPNESS = 2\n")
    assert names() == before  # nobody imports it
    path = copy / "fvlm/video/geometry.py"
    edit(path, path.read_text() + "\ndef sharp():\n    from fvlm.video import extra\n")
    middle = names()
    assert middle["decode"] != before["decode"]
    edit(copy / "fvlm/video/extra.py", "SHARPNESS = 3\n")
    later = names()
    assert later["decode"] != middle["decode"]
    (copy / "fvlm/encoders/means.json").write_text("[0.5]")
    last = names()
    assert last["encode"] != later["encode"]
    assert last["filter"] == later["filter"]


def test_a_library_that_is_upgraded_changes_the_names_of_what_it_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = names()
    for package, stages in (
        ("av", {"filter", "decode", "collect"}),
        ("torch", {"encode", "train", "uncertainty"}),
        ("pydantic", set()),
    ):
        monkeypatch.setattr(
            "fvlm.core.identity.version",
            lambda name, package=package: "99" if name == package else version(name),
        )
        changed = {stage for stage, name in names().items() if name != before[stage]}
        assert changed == stages, package


def test_what_is_told_to_people_decides_nothing() -> None:
    for modules in MODULES_OF.values():
        for name in closure(modules):
            assert not {name, name.rpartition(".")[0]} & set(NEUTRAL)


def test_a_closure_holds_all_that_runs() -> None:
    """Against a second reader of imports: what is left out is neutral, or behind it."""
    for modules in MODULES_OF.values():
        found = set(closure(modules))
        for module in found & set(MODULES):
            direct = {name for name in reachable(module, deep=True) if name in MODULES}
            missing = {name for name in direct - found if not name.startswith(NEUTRAL)}
            behind = set().union(
                *(reachable(name, deep=True) for name in NEUTRAL if name in MODULES)
            )
            assert missing <= behind, f"{module}: {missing}"


def test_dvc_runs_a_stage_whenever_its_names_change() -> None:
    """The dependencies of a stage hold the closure: it runs too often, never too seldom."""
    stages = {
        name: entry
        for file in ("dvc.yaml", "uncertainty/dvc.yaml")
        for name, entry in yaml.safe_load((ROOT / file).read_text())["stages"].items()
    }
    for stage, modules in MODULES_OF.items():
        folders = {str(path.relative_to(ROOT).parent) for path in closure(modules).values()}
        assert folders - {"fvlm"} <= set(stages[stage]["deps"]), stage


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_every_python_gives_a_file_the_same_hash(minor: int) -> None:
    program = shutil.which(f"python3.{minor}")
    if program is None or subprocess.run([program, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"Python 3.{minor} is not installed")
    code = (
        "import sys; from pathlib import Path; from fvlm.core.identity import hash_source\n"
        "print(*(hash_source(Path(line)) for line in sys.stdin.read().split()), sep='\\n')"
    )
    paths = [path for path in MODULES.values() if path.stat().st_size]
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [program, "-c", code],
        input="\n".join(map(str, paths)),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [identity.hash_source(path) for path in paths]


def test_an_edit_while_a_process_runs_does_not_change_its_names(copy: Path) -> None:
    """Nor one that it asks for the first time after the edit, of code that it has read."""
    before, late = names(), "fvlm.model.saved:load_model"
    path = copy / "fvlm/model/film_head.py"
    path.write_text(path.read_text() + "\nAPPENDED = 1\n")
    assert {stage: made_by(*roots) for stage, roots in ROOTS.items()} == before
    loaded_by = made_by(late)
    identity._described.cache_clear()
    assert made_by(late) == loaded_by
    identity._content.cache_clear()
    assert made_by(late) == loaded_by  # of the process that goes on
    assert names()["train"] != before["train"]
    assert made_by(late) != loaded_by


def test_one_thread_parses_at_a_time(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once fail in Python 3.11: "AST constructor recursion depth mismatch"."""
    parse, inside, most = ast.parse, [], []

    def slow(*args: Any, **kwargs: Any) -> Any:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        tree = parse(*args, **kwargs)
        inside.pop()
        return tree

    monkeypatch.setattr(ast, "parse", slow)
    paths = sorted((copy / "fvlm/core").glob("*.py"))
    with ThreadPoolExecutor(4) as threads:
        hashes = list(threads.map(hash_source, paths))
    assert max(most) == 1
    assert len(set(hashes)) == len(most) == len(paths)


def test_joined_hashes_count_as_the_first(copy: Path) -> None:
    rows = [{"old": "a", "new": "b"}, {"old": "b", "new": "c"}, {"old": "y", "new": "x"}]
    write_jsonl(copy / "same.jsonl", [*rows, {"old": "x", "new": "y"}])
    assert [canonical(name) for name in "abcd"] == ["a", "a", "a", "d"]
    assert canonical("x") in "xy"  # a circle ends
    new = identity.current(*ROOTS["decode"])
    write_jsonl(copy / "same.jsonl", [{"old": "earlier", "new": new}])
    assert made_by(*ROOTS["decode"]) == "earlier"


def test_the_present_interpreter_is_among_those_compared() -> None:
    assert 11 <= sys.version_info.minor <= 14
