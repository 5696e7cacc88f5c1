"""Stages in folders of their own: made once, and none left running when the command ends."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fvlm.cli import folders
from fvlm.cli.folders import Folders
from fvlm.core import identity
from fvlm.core.errors import FvlmError
from fvlm.core.params import PARAMS
from fvlm.core.progress import Progress

ROOT = folders.ROOT
STAGES = {
    "write": "import numpy\nfrom pathlib import Path\n"
    "with Path('runs').open('a') as file: file.write('x')\n",
    "fail": "import sys\nprint('no such lens')\nsys.exit(3)\n",
    "wait": "import os, time\nfrom pathlib import Path\n"
    "Path('started').write_text(str(os.getpid()))\ntime.sleep(600)\n",
}
COMMAND = """
import sys
from pathlib import Path
from fvlm.core.progress import Progress
from fvlm.cli import folders
folders.ROOT = Path.cwd()
made = folders.Folders(Path("preset.yaml"))
with Progress("made", total=2, unit="folder") as progress:
    calls = [(Path(name), {}, {}, ["wait"]) for name in ("a", "b")]
    made.side_by_side(made.make, calls, 2, progress)
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Folders under a project whose stages write, fail and wait."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folders, "ROOT", tmp_path)
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    for name, code in STAGES.items():
        path = tmp_path / f"pipeline/{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    (tmp_path / "assets").mkdir()
    shutil.copy(ROOT / PARAMS, tmp_path / PARAMS)
    (tmp_path / "preset.yaml").write_text("train: {batch_size: 3}\n")
    return Folders(Path("preset.yaml"))


def forget_code() -> None:
    """As in another process: what this one has read of the code stays as it was."""
    identity._described.cache_clear()
    identity._content.cache_clear()


def wait_for(path: Path) -> int:
    """The process that wrote its number there."""
    limit = time.monotonic() + 60
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < limit, path
        time.sleep(0.01)
    return int(path.read_text())


def ends(process: int) -> bool:
    """Whether a process that is not ours is gone soon."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_a_folder_is_made_once_for_its_parameters(made: Folders) -> None:
    folder = Path("one")
    for seed, runs in ((0, "x"), (0, "x"), (1, "xx"), (1, "xx")):
        made.make(folder, {"evaluate": {"seed": seed}}, {}, ["write"])
        assert (folder / "runs").read_text() == runs
    text = (folder / PARAMS).read_text()
    assert "batch_size: 3 " in text
    assert (folder / "assets").resolve() == Path("assets").resolve()


def test_other_weights_or_packages_make_a_folder_again(
    made: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, preset = Path("one"), Path("preset.yaml")
    made.make(folder, {}, {}, ["write"])
    Path("assets/weights.safetensors").write_bytes(b"other")
    Folders(preset).make(folder, {}, {}, ["write"])
    assert (folder / "runs").read_text() == "xx"
    monkeypatch.setattr(identity, "version", lambda name: f"another {name}")
    forget_code()
    for _ in range(2):
        Folders(preset).make(folder, {}, {}, ["write"])
    assert (folder / "runs").read_text() == "xxx"


def test_only_changed_code_of_its_stages_makes_it_again(made: Folders) -> None:
    made.make(Path("one"), {}, {}, ["write"])
    for stage, runs in (("fail", "x"), ("write", "xx")):
        with Path(f"pipeline/{stage}.py").open("a") as file:
            file.write("print()\n")
        forget_code()
        Folders(Path("preset.yaml")).make(Path("one"), {}, {}, ["write"])
        assert Path("one/runs").read_text() == runs


def test_the_first_error_stops_the_others(made: Folders) -> None:
    def make(name: str, stage: str) -> None:
        if stage == "fail":
            wait_for(Path("slow/started"))
        made.make(Path(name), {}, {}, [stage])

    calls = [("slow", "wait"), ("bad", "fail"), ("later", "write")]
    with (
        Progress("made", total=3, unit="folder") as progress,
        pytest.raises(FvlmError, match=r"(?s)fail failed in bad \(exit code 3\):.no such lens"),
    ):
        made.side_by_side(make, calls, 2, progress)
    assert ends(wait_for(Path("slow/started")))
    assert not Path("later/runs").exists()


@pytest.mark.usefixtures("made")
def test_sigterm_leaves_no_stage_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", COMMAND], env=environment) as command:
        stages = [wait_for(tmp_path / name / "started") for name in ("a", "b")]
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == 128 + signal.SIGTERM
    assert all(ends(stage) for stage in stages)
