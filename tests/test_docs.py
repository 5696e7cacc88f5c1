"""What README and the other pages tell a person to do exists: links, commands, parameters."""

import json
import re
import shlex
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from fvlm.__main__ import COMMANDS
from tests.projects import ROOT

FOLDERS = (ROOT, ROOT / "docs", ROOT / "benchmarks")
PAGES = sorted(path for folder in FOLDERS for path in folder.glob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def code_lines(page: Path) -> list[str]:
    """Lines of code blocks, without comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def commands(page: Path, first: str) -> list[list[str]]:
    """Words of the commands in code blocks and between backquotes that begin with `first`."""
    spans = re.findall(r"`([^`\n]+)`", page.read_text())
    lines = [line for line in (*code_lines(page), *spans) if line.startswith(f"{first} ")]
    return [shlex.split(line.partition(" > ")[0], comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_those_that_there_are(page: Path) -> None:
    for _, command, *given in commands(page, "fvlm"):
        if command in {"--help", "completion", "COMMAND"}:
            continue
        assert command in COMMANDS, command
        if given and not any(word.isupper() for word in given):
            import_module(f"fvlm.cli.{command}").command_line().parse_args(given)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {target for _, target, *_ in commands(page, "make")} <= {*targets, "bench_NAME"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_parameters_are_those_that_there_are(page: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for words in commands(page, "dvc"):
        for flag, value in pairwise(words):
            if flag in {"-S", "--set-param"}:
                section, _, key = value.partition("=")[0].partition(".")
                assert key in params[section], value


def test_every_page_is_reached_from_the_readme() -> None:
    reached = {
        (ROOT / link.partition("#")[0]).resolve()
        for link in LINK.findall((ROOT / "README.md").read_text())
        if not link.startswith("http")
    }
    assert set(PAGES) - {ROOT / "README.md"} <= reached


def test_the_notebook_is_stored_as_it_ran() -> None:
    """Its cells are run by tests/pipeline/test_repro.py; `python -m tools.notebook` stores it."""
    path = ROOT / "docs/from_video_to_verdict.ipynb"
    assert path.stat().st_size < 300_000
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert len([output for output in outputs if "data" in output]) >= 5
    printed = "".join("".join(output.get("text", [])) for output in outputs)
    assert "Loss / fine loss" in printed
    assert not re.search(r"/(tmp|home|root|work)/", printed)  # the machine it ran on
    text = "".join("".join(cell["source"]) for cell in notebook["cells"])
    for link in LINK.findall(text):
        assert (path.parent / link).exists(), link


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
