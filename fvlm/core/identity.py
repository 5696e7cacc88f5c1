"""Names of kept work: what made its bytes, and from what.

Every kind of kept work has roots, the functions that make its bytes. `made_by` hashes the code that
these can reach inside the project, found by reading imports, and the versions of the libraries that
this code imports: a new module counts by itself, a comment or docstring does not.

    made_by(decode_request, write_shard)      # hex; the rest of a name is parameters and data

A process reads each file once, so that an edit while it runs does not change the name of what it
makes: the code that it started with is what makes it.

Two hashes count as one where `same.jsonl`, a tracked file, joins them: somebody has shown that both
make the same bytes (`fvlm same`).
"""

import ast
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from fvlm.core.io import hash_json, read_jsonl

ROOT = Path(__file__).resolve().parents[2]  # of this code
JOINS = ROOT / "same.jsonl"
# What no byte depends on: how faults and progress are told, and what the user types.
NEUTRAL = (
    "fvlm.core.errors",
    "fvlm.core.progress",
    "fvlm.core.provenance",
    "fvlm.core.stage",
    "fvlm.cli",
    "fvlm.tracking",
)
NEUTRAL_PACKAGES = (
    "huggingface_hub",
    "pydantic",
    "pydantic_core",
    "rich",
    "ruamel",
    "tqdm",
    "yaml",
)
_PARSING = threading.Lock()  # Python 3.11 counts the depth of all threads' trees in one place


def made_by(*roots: Callable[..., Any] | str) -> str:
    """Hex hash of the code behind these functions and of the libraries it computes with.

    A root that is not to be imported here is named: `module:function`. Of hashes that are joined it
    is the first.
    """
    return canonical(current(*roots))


def current(*roots: Callable[..., Any] | str) -> str:
    """The hash of the present code alone."""
    code, packages = _described(ROOT, _modules(roots))
    return hash_json({"code": code, "packages": packages})[:20]


def edited(*roots: Callable[..., Any] | str) -> list[str]:
    """Modules behind these roots whose files are not any more as this process has read them."""
    found = closure(_modules(roots))
    return [name for name, path in found.items() if path.read_bytes() != _content(path)]


def _modules(roots: tuple[Callable[..., Any] | str, ...]) -> tuple[str, ...]:
    names = {root.split(":")[0] if isinstance(root, str) else root.__module__ for root in roots}
    return tuple(sorted(names))


def canonical(made: str) -> str:
    """The first of all hashes that `same.jsonl` joins with this one."""
    joins = {row["new"]: row["old"] for row in read_jsonl(JOINS)} if JOINS.exists() else {}
    seen = {made}
    while joins.get(made, made) not in seen:
        made = joins[made]
        seen.add(made)
    return made


@cache
def _described(_root: Path, roots: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Hash of the code behind these modules, and the versions of the libraries it imports."""
    modules = closure(roots)
    files = {module: hash_source(path) for module, path in modules.items()}
    for folder in {path.parent for path in modules.values()}:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix not in (".py", ".pyc", ".tmp"):
                files[f"{folder.name}/{path.name}"] = hashlib.sha256(_content(path)).hexdigest()
    found = {name.split(".")[0] for path in modules.values() for name in _imports(path)}
    return hash_json(files), dict(sorted(_versions(found)))


def closure(roots: tuple[str, ...]) -> dict[str, Path]:
    """The modules of this project that the roots import, also inside functions, and themselves.

    A string `module:function` names the entry point of a worker process and counts as an import.
    """
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        path = _file_of(module)
        if module not in found and path is not None and not _is_neutral(module):
            found[module] = path
            waiting += _imports(path)
    return dict(sorted(found.items()))


def _is_neutral(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in NEUTRAL)


def _file_of(module: str) -> Path | None:
    """The file of a module of this project; a package is the file `__init__.py`."""
    if module.split(".")[0] not in ("fvlm", "pipeline"):
        return None
    stem = ROOT.joinpath(*module.split("."))
    candidates = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            module, separator, _ = node.value.partition(":")
            if separator and module.startswith("fvlm.") and module.replace(".", "").isidentifier():
                yield module


def _versions(names: set[str]) -> Iterator[tuple[str, str]]:
    """Distributions that carry these top-level modules, and their public versions."""
    carried = _distributions()
    for name in names - set(NEUTRAL_PACKAGES):
        for distribution in carried.get(name, ()):
            # A local label says for which device torch was built, not what it computes.
            yield distribution, version(distribution).split("+")[0]


@cache
def _distributions() -> dict[str, list[str]]:
    carried = packages_distributions()
    return {name: sorted(set(found)) for name, found in carried.items() if name != "fvlm"}


@cache
def _content(path: Path) -> bytes:
    return path.read_bytes()


@cache
def _source(path: Path, content: bytes) -> tuple[str, frozenset[str]]:
    """Hash of a file's syntax, whatever its comments and docstrings say; what it imports."""
    with _PARSING:
        tree = ast.parse(content, filename=str(path))
    text = json.dumps(_plain(tree), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest(), frozenset(_imported(tree))


def hash_source(path: Path) -> str:
    """Hex hash of a Python file, as first read, that is the same for every Python."""
    return _source(path, _content(path))[0]


def _imports(path: Path) -> frozenset[str]:
    return _source(path, _content(path))[1]


def _plain(value: Any) -> Any:
    """A syntax tree as nested lists: no places, no docstrings, no fields that are empty.

    Pythons differ in the fields that they know, but not in those that are filled.
    """
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, ast.Constant):
        return ["Constant", type(value.value).__name__, repr(value.value)]
    if not isinstance(value, ast.AST):
        return value
    fields = dict(ast.iter_fields(value))
    if isinstance(value, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = fields["body"][ast.get_docstring(value, clean=False) is not None :]
    filled = sorted(name for name, item in fields.items() if item not in (None, [], ""))
    return [type(value).__name__, *([name, _plain(fields[name])] for name in filled)]
