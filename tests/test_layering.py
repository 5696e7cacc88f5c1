"""Who may import whom, what starts without heavy imports, and what no module may do."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter

import pytest

from tests.imports import MODULES, ROOT, imports, parsed, reachable

# From the bottom up; a folder imports from the layers below it, and nothing of its neighbours.
LAYERS = (
    {"core"},
    {"corpus", "shards", "statistics", "tracking", "weights"},
    {"clips", "encoders", "video"},
    {"model"},
    {"evaluation", "training", "uncertainty"},
    {"calibration", "report"},
    {"cli"},
    {"__main__"},
)
HEAVY = ("torch", "transformers", "diffusers", "mlflow")
# What starts often, and the libraries that it starts without: each takes a second or more.
LIGHT: list[tuple[str, tuple[str, ...]]] = [
    ("pipeline.collect, pipeline.filter, pipeline.decode, fvlm.cli.verdict", HEAVY),
    ("fvlm.cli.check, pipeline.encode, pipeline.train", ("diffusers", "matplotlib", "mlflow")),
]
NOT_IN_A_STEP = ("dvc", "mlflow", "av", "webdataset")
STEP = ("fvlm.training.loop", "fvlm.clips.order", "fvlm.model.build", "fvlm.shards.read")


def part(module: str) -> str:
    """`fvlm.video.probe` -> `video`."""
    return module.split(".")[1]


def layer(module: str) -> int:
    (number,) = [index for index, members in enumerate(LAYERS) if part(module) in members]
    return number


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("fvlm.")])
def test_the_library_imports_downwards_only(module: str) -> None:
    for other in imports(module, deep=True):
        if other.startswith("pipeline"):
            # Commands stand on top of the stages' artefacts.
            assert part(module) == "cli", f"{module} imports {other}"
            allowed = {"pipeline", "pipeline.paths"}
            if module == "fvlm.cli.same":  # makes a part of what they made
                allowed |= {f"pipeline.{stage}" for stage in ("train", "instruct", "prefer")}
            assert other in allowed, f"{module} imports {other}"
        elif other in MODULES and part(other) != part(module):
            assert layer(other) < layer(module), f"{module} imports {other}"


def test_what_is_imported_is_declared() -> None:
    """In pyproject.toml, and not only brought by another package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]["gpu"]
    words = (re.split("[<>=]", line)[0] for line in [*project["dependencies"], *extras])
    declared = {word.replace("-", "_").lower() for word in words} | {
        *("PIL", "yaml", "ruamel", "pynvml"),  # pillow, pyyaml, ruamel.yaml, nvidia-ml-py
        *("pydantic_core", "dvc_data"),  # parts of pydantic and dvc
    }
    found = {name.split(".")[0] for module in MODULES for name in imports(module, deep=True)} - set(
        sys.stdlib_module_names
    )
    assert found - declared == {"fvlm", "pipeline"}


def test_no_circles() -> None:
    TopologicalSorter(
        {name: imports(name, deep=True) & set(MODULES) for name in MODULES}
    ).prepare()  # raises CycleError


def test_the_pipeline_folder_holds_stages_and_their_paths() -> None:
    for module in MODULES:
        if module.startswith("pipeline."):
            others = {name for name in imports(module, deep=True) if name.startswith("pipeline")}
            assert others <= {"pipeline.paths"}, f"{module} imports {others}"
            is_stage = 'if __name__ == "__main__"' in MODULES[module].read_text()
            assert is_stage == (module != "pipeline.paths"), module


def test_only_params_knows_the_parameters_file() -> None:
    """A literal path; text such as messages and docstrings may name the file."""
    found = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.strip("./") == "params.yaml"
    }
    assert found == {"fvlm.core.params"}


@pytest.mark.parametrize("module", STEP)
def test_a_training_step_imports_nothing_of_tracking_and_pipelines(module: str) -> None:
    found = {name.split(".")[0] for name in reachable(module)}
    assert "torch" in found or module in {"fvlm.shards.read", "fvlm.clips.order"}
    assert not found & set(NOT_IN_A_STEP)


@pytest.mark.parametrize(("modules", "heavy"), LIGHT)
def test_what_starts_often_starts_without_heavy_imports(
    modules: str, heavy: tuple[str, ...]
) -> None:
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & set({heavy})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def call_name(node: ast.Call) -> str:
    return ast.unparse(node.func)


@pytest.mark.parametrize("module", MODULES)
def test_no_pickle(module: str) -> None:
    assert not imports(module, deep=True) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib"}
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.Call):
            name = call_name(node)
            where = f"{module}:{node.lineno}: {name}"
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if name in {"np.load", "numpy.load", "np.lib.format.read_array"}:
                assert options.get("allow_pickle") == "False", where
            assert name not in {"torch.load", "torch.save", "pd.read_pickle"}, where
            assert options.get("use_safetensors", "True") == "True", where
            assert options.get("trust_remote_code", "False") == "False", where


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_short(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 350


def test_package_files_are_empty_but_the_face() -> None:
    for folder in ("fvlm", "pipeline"):
        for path in (ROOT / folder).rglob("__init__.py"):
            assert path.read_text() == "" or path == ROOT / "fvlm/__init__.py", path


def test_no_module_is_a_drawer() -> None:
    assert not [name for name in MODULES if name.split(".")[-1] in {"utils", "helpers", "common"}]
