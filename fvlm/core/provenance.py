"""What a result was made from and with: commit, versions of packages."""

import os
import subprocess
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from fvlm.core.params import PARAMS

PACKAGES = ("torch", "transformers", "diffusers", "av", "numpy", "dvc", "webdataset", "mlflow")
# What decides a result, besides the data.
CODE = ("fvlm", "pipeline", "assets", str(PARAMS), "dvc.yaml", "same.jsonl")
NAMED = 5  # files that differ from the commit; of more only the numbers are told


def git_commit(folder: Path) -> str:
    """The commit of the code, and which files of code and parameters are not as it has them.

    It is the last one that changed any of these: a clone of a later one, which holds results, makes
    the same bytes. (A shallow clone knows none before its first and names that.) In a temporary
    experiment of DVC it is the last one before the experiment.
    """
    try:
        commit, _ = _last_commit(folder)
        status = _git(
            folder,
            *("--no-optional-locks", "status", "--porcelain", "-z", "--no-renames"),
            *("--untracked-files=all", "--", *CODE),
        )
    except (OSError, subprocess.CalledProcessError):
        return "not in a git repository"
    entries = [(_kind(entry[:2]), entry[3:]) for entry in status.split("\0") if entry]
    if not entries:
        return commit
    if len(entries) <= NAMED:
        told = ", ".join(f"{name} ({kind})" for kind, name in entries)
    else:
        kinds = Counter(kind for kind, _ in entries)
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        told = f"{len(entries)} files of code and parameters ({counted})"
    return f"{commit}; not committed when this was made: {told}"


def commit_date(folder: Path) -> str:
    """The day of `git_commit` as YYYY-MM-DD, where it was committed; empty where there is none."""
    try:
        return _last_commit(folder)[1]
    except (OSError, subprocess.CalledProcessError):
        return ""


def _last_commit(folder: Path) -> tuple[str, str]:
    """Hash and day of the last commit that changed CODE; of HEAD where none did."""
    command = ("rev-list", "-1", "--format=%cs", "HEAD")
    found = _git(folder, *command, "--", *CODE) or _git(folder, *command)
    _, commit, date = found.split()  # commit HASH, a line with the day
    return commit, date


def _kind(status: str) -> str:
    """Two letters of `git status --porcelain` in a word."""
    if status == "??" or "A" in status:
        return "new"
    return "deleted" if "D" in status else "changed"


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that decide a result."""
    return {name: version(name) for name in PACKAGES}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True)
    return os.fsdecode(done.stdout)
