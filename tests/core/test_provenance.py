import subprocess
from pathlib import Path

import pytest

from fvlm.core.provenance import PACKAGES, git_commit, package_versions


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "test")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "test@example.org")
    (tmp_path / "params.yaml").write_text("a: 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "start"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_commit_is_named(repository: Path) -> None:
    assert len(git_commit(repository)) == 40


def test_results_are_no_local_change_but_parameters_are(repository: Path) -> None:
    (repository / "metrics").mkdir()
    (repository / "metrics" / "train.json").write_text("{}")
    assert len(git_commit(repository)) == 40
    (repository / "params.yaml").write_text("a: 2\n")
    assert git_commit(repository).endswith("with local changes")


def test_an_unpacked_archive_has_no_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == "not in a git repository"


def test_versions_are_those_installed() -> None:
    found = package_versions()
    assert tuple(found) == PACKAGES
    assert all(found.values())
