"""The project's import graph, read from the files: who imports whom, also inside functions."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("fvlm", "pipeline")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "__init__.py"
}


@cache
def parsed(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _names(node: ast.AST) -> list[str]:
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
        nodes: list[ast.AST] = list(ast.walk(tree))
    else:
        nodes = []
        pending: list[ast.AST] = list(tree.body)
        while pending:
            node = pending.pop()
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                nodes.append(node)
                pending += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)]
    return {name for node in nodes for name in _names(node)}


def named_in_text(module: str) -> set[str]:
    """Modules that a string names: entry points of worker and child processes.

    Commands are left out: one that a stage starts checks something, and makes nothing.
    """
    strings = {
        node.value.split(":")[0]
        for node in ast.walk(parsed(MODULES[module]))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {name for name in strings & set(MODULES) if not name.startswith("fvlm.cli.")}


def reachable(module: str, *, deep: bool = False) -> set[str]:
    """Everything that importing a module imports; `deep`: or running it, in any process."""
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        if name in MODULES:
            pending += imports(name, deep=deep)
            pending += named_in_text(name) if deep else []
    return found
