"""Who may import whom, what starts without heavy imports, and what no module may do."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("fvlm", "pipeline")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "__init__.py"
}

# From the bottom up; a module imports from its own layer and from those below it.
LAYERS = (
    {"errors"},
    {"params", "io", "seeding", "progress", "compute", "ahead"},
    {"video", "shards", "corpus", "models", "tracking", "mlflow_sender"},
    {"training", "evaluation", "uncertainty"},
    {"report"},
)
NEVER = {  # layers beside each other that know nothing of each other
    "video": {"shards", "models", "corpus", "tracking"},
    "shards": {"video", "models", "corpus", "tracking"},
    "corpus": {"models", "tracking"},
    "models": {"video", "shards", "corpus", "tracking"},
    "training": {"evaluation", "video", "shards", "corpus", "tracking"},
    "evaluation": {"training", "video", "corpus", "tracking"},
    "report": {"training", "uncertainty", "video", "shards", "corpus", "tracking"},
    "uncertainty": {"training", "evaluation", "video", "shards", "corpus", "tracking"},
}
HEAVY = ("torch", "transformers", "diffusers", "mlflow")
NOT_IN_A_STEP = ("dvc", "mlflow", "av", "webdataset")
STEP = ("fvlm.training.loop", "fvlm.training.order", "fvlm.models.build", "fvlm.shards.read")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def names(node: ast.stmt) -> list[str]:
    """Imported modules; `from a import b` counts as a and, where that is a module, as a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        deeper = [f"{node.module}.{alias.name}" for alias in node.names]
        return [str(node.module), *(name for name in deeper if name in MODULES)]
    return []


def imports(module: str, *, deep: bool) -> set[str]:
    """Imports of a module at its top level, or with `deep` also those inside functions."""
    tree = parsed(MODULES[module])
    if deep:
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    else:
        nodes = []
        pending = list(tree.body)
        while pending:
            node = pending.pop()
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                nodes.append(node)
                pending += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
    return {name for node in nodes for name in names(node)}


def reachable(module: str) -> set[str]:
    """Everything that importing a module imports: first-party modules and what they import."""
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += imports(name, deep=False) if name in MODULES else []
    return found


def part(module: str) -> str:
    """`fvlm.video.probe` -> `video`."""
    return module.split(".")[1]


def layer(module: str) -> int:
    (number,) = [index for index, members in enumerate(LAYERS) if part(module) in members]
    return number


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("fvlm.")])
def test_the_library_imports_downwards_only(module: str) -> None:
    for other in imports(module, deep=True):
        assert not other.startswith("pipeline"), f"{module} imports {other}"
        if other in MODULES:
            assert layer(other) <= layer(module), f"{module} imports {other}"
            assert part(other) not in NEVER.get(part(module), set()), f"{module} imports {other}"


def test_stages_import_no_other_stage() -> None:
    shared = {f"pipeline.{name}" for name in ("stage", "clips", "check", "folders")} | {"pipeline"}
    for module in MODULES:
        if module.startswith("pipeline."):
            others = {name for name in imports(module, deep=True) if name.startswith("pipeline")}
            assert others <= shared, module


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
    assert found == {"fvlm.params"}


@pytest.mark.parametrize("module", STEP)
def test_a_training_step_imports_nothing_of_tracking_and_pipelines(module: str) -> None:
    found = {name.split(".")[0] for name in reachable(module)}
    assert "torch" in found or module in {"fvlm.shards.read", "fvlm.training.order"}
    assert not found & set(NOT_IN_A_STEP)


@pytest.mark.parametrize("stage", ["pipeline.collect", "pipeline.filter"])
def test_light_stages_start_without_heavy_imports(stage: str) -> None:
    code = f"import sys, {stage}; print(*sorted(set(sys.modules) & set({HEAVY})))"
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


def test_package_files_are_empty() -> None:
    for folder in ("fvlm", "pipeline"):
        for path in (ROOT / folder).rglob("__init__.py"):
            assert path.read_text() == "", path


def test_no_module_is_a_drawer() -> None:
    assert not [name for name in MODULES if name.split(".")[-1] in {"utils", "helpers", "common"}]
