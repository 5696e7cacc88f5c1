import subprocess
import sys
from pathlib import Path

import pytest

from fvlm.core.provenance import NAMED, PACKAGES, commit_date, git_commit, package_versions

ROOT = Path(__file__).parents[2]


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
    assert "params.yaml (changed)" in git_commit(repository)


def test_a_commit_of_results_is_not_named(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a clone of the committed results would make another report than they hold."""
    code, clone = git_commit(repository), tmp_path_factory.mktemp("clone") / "clone"
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2031-02-03T23:30:00-0500")
    (repository / "dvc.lock").write_text("results\n")
    commit_all(repository)
    subprocess.run(["git", "clone", "-q", str(repository), str(clone)], check=True)
    assert git_commit(clone) == git_commit(repository) == code
    (repository / "params.yaml").write_text("a: 2\n")
    assert commit_date(repository) == commit_date(clone) != "2031-02-03"
    commit_all(repository)
    assert git_commit(repository) not in (code, "")
    assert commit_date(repository) == "2031-02-03"  # where it was committed, wherever it is read


def test_a_repository_without_code_names_what_there_is(repository: Path) -> None:
    subprocess.run(["git", "mv", "params.yaml", "other.yaml"], cwd=repository, check=True)
    subprocess.run(["git", "commit", "-q", "--amend", "-m", "no code"], cwd=repository, check=True)
    assert len(git_commit(repository)) == 40


def commit_all(repository: Path) -> None:
    for command in (["add", "-A"], ["commit", "-q", "-m", "more"]):
        subprocess.run(["git", *command], cwd=repository, check=True)


def test_files_that_differ_are_named_a_handful_of_them(repository: Path) -> None:
    commit = git_commit(repository)
    (repository / "fvlm" / "é new").mkdir(parents=True)
    (repository / "fvlm" / "é new" / "a b.py").write_text("")
    (repository / "params.yaml").unlink()
    (repository / "dvc.yaml").write_text("")
    subprocess.run(["git", "add", "dvc.yaml"], cwd=repository, check=True)
    named = "dvc.yaml (new), params.yaml (deleted), fvlm/é new/a b.py (new)"
    assert git_commit(repository) == f"{commit}; not committed when this was made: {named}"
    subprocess.run(["git", "config", "status.showUntrackedFiles", "no"], cwd=repository, check=True)
    for number in range(NAMED):
        (repository / "fvlm" / f"{number}.py").write_text("")
    counted = "8 files of code and parameters (7 new, 1 deleted)"
    assert git_commit(repository) == f"{commit}; not committed when this was made: {counted}"
    commit_all(repository)
    assert len(git_commit(repository)) == len(commit)


@pytest.mark.slow
def test_an_experiment_names_the_commit_it_started_from(repository: Path) -> None:
    """In the temporary folder where DVC runs it, with what it changes there."""
    python = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from fvlm.core.provenance import "
    script = python + "git_commit; open('made', 'w').write(git_commit('.'))"
    (repository / "script.py").write_text(script)
    (repository / "dvc.yaml").write_text(
        f"stages: {{made: {{cmd: {sys.executable} script.py, params: [a], metrics: "
        "[made: {cache: false}]}}\n"
    )
    dvc = [sys.executable, "-m", "dvc"]
    start = [["git", "add", "-A"], ["git", "commit", "-q", "-m", "a stage"]]
    for command in ([*dvc, "init", "-q"], *start):
        subprocess.run(command, cwd=repository, check=True)
    commit = git_commit(repository)
    assert len(commit) == 40
    experiment = ["exp", "run", "-q", "--temp", "--name", "temporary", "-S", "a=3"]
    subprocess.run([*dvc, *experiment], cwd=repository, check=True)
    listed = ["git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/temporary"]
    ref = subprocess.run(listed, cwd=repository, check=True, capture_output=True, text=True).stdout
    show = ["git", "show", f"{ref.strip()}:made"]
    made = subprocess.run(show, cwd=repository, check=True, capture_output=True, text=True).stdout
    assert made == f"{commit}; not committed when this was made: params.yaml (changed)"


def test_an_unpacked_archive_has_no_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == "not in a git repository"
    assert commit_date(tmp_path) == ""


def test_versions_are_those_installed() -> None:
    found = package_versions()
    assert tuple(found) == PACKAGES
    assert all(found.values())
