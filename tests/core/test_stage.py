"""Every stage explains itself, and takes nothing that it does not know."""

import runpy
from pathlib import Path

import pytest
import torch

from fvlm.core.errors import FvlmError
from fvlm.core.stage import run

ROOT = Path(__file__).parents[2]
STAGES = sorted(
    f"pipeline.{path.stem}"
    for path in (ROOT / "pipeline").glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text()
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that starts to work nevertheless finds no parameters."""
    monkeypatch.chdir(tmp_path)


def exit_code(monkeypatch: pytest.MonkeyPatch, command: str, *arguments: str) -> object:
    """Run the command in this process, which has its imports already."""
    monkeypatch.setattr("sys.argv", [command, *arguments])
    with pytest.raises(SystemExit) as leave:
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    return leave.value.code


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", STAGES)
def test_help_is_shown_and_unknown_arguments_are_refused(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wish in ("--help", "-h"):
        assert exit_code(monkeypatch, command, wish) == 0
        said = capsys.readouterr()
        assert said.out.startswith(f"usage: python -m {command} [-h]")
        assert len(said.out.splitlines()) > 4
        assert said.err == ""
    assert exit_code(monkeypatch, command, "--no-such-option") == 2
    assert f"python -m {command}: error: " in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_a_stage_that_another_program_runs_leaves_the_command_line_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["launcher", "decode"])
    calls = []

    def main() -> None:
        calls.append("called")

    run(main)
    assert calls == ["called"]


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (FvlmError("no such film"), 1, "error: no such film\n"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has .."),
            1,
            "error: CUDA out of memory: lower train.batch_size in params.yaml\n",
        ),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_what_the_user_can_mend_is_told_without_a_traceback(
    raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise raised

    with pytest.raises(SystemExit) as leave:
        run(main, batch_key="train.batch_size")
    assert (leave.value.code, capsys.readouterr().err) == (code, said)


def test_other_faults_keep_their_traceback() -> None:
    def main() -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(main, batch_key="train.batch_size")
