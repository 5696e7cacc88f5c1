"""`import fvlm` and the command `fvlm`: what a person meets first."""

import sys
from pathlib import Path

import pytest

import fvlm
from fvlm import __main__ as door
from fvlm.core import stage
from tests.projects import ROOT, output_of


def run(*arguments: str, code: int = 0) -> str:
    return output_of([sys.executable, *arguments], ROOT, code=code, imports=ROOT)


def test_what_the_package_offers_is_there_and_comes_when_it_is_used() -> None:
    assert {"load_model", "open_clips", "open_shards", "inspect_clips", "decode_video"} < set(
        fvlm.__all__
    )
    for name in fvlm.__all__:
        assert getattr(fvlm, name)
        assert name in dir(fvlm)
        assert name == "__version__" or name in str(fvlm.__doc__)
    with pytest.raises(AttributeError, match="module 'fvlm' has no attribute 'nothing'"):
        _ = fvlm.nothing
    code = "import sys, fvlm; print({'torch', 'av', 'numpy'} & set(sys.modules)); fvlm.__version__"
    assert run("-c", code) == "set()\n"


def test_the_command_lists_what_it_can_and_names_what_it_cannot() -> None:
    for arguments in ([], ["--help"]):
        said = run("-m", "fvlm", *arguments)
        for name, text in door.COMMANDS.items():
            assert name in said
            assert text.split(",")[0][:30] in " ".join(said.split())
    said = run("-m", "fvlm", "train", code=2)
    assert "invalid choice: 'train'" in said


@pytest.mark.parametrize("command", door.COMMANDS)
def test_every_command_explains_itself_anywhere(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # no checkout
    for arguments, code in (["--help"], 0), (["--no-such-option", "-h"], 0):
        with pytest.raises(SystemExit) as leave:
            door.main([command, *arguments])
        assert leave.value.code == code
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: fvlm {command} [-h]")
    assert len(said.out.splitlines()) > 4


def test_it_works_from_any_folder_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    below = tmp_path / "a/b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.setattr(stage, "started_in", Path())
    with pytest.raises(SystemExit):
        door.main(["forget", "train"])
    assert "is a checkout of fVLM" in capsys.readouterr().err
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    door.main(["forget", "train"])
    assert (tmp_path / ".state/forgotten/train").exists()
    assert Path.cwd() == tmp_path
    assert stage.given_path("c.mp4") == below / "c.mp4"
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/own.yaml").touch()
    monkeypatch.chdir(below)
    with pytest.raises(SystemExit):
        door.main(["preset", "--help"])
    assert "{own}" in capsys.readouterr().out
    assert stage.given_path("/c.mp4") == Path("/c.mp4")


@pytest.mark.parametrize("shell", door.SHELLS)
def test_every_command_and_option_is_completed(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    door.main(["completion", shell])
    printed = capsys.readouterr().out
    for name in (*door.COMMANDS, "trust", "features-rtx4090", "encode", "mvbench", "prefer"):
        assert name in printed
