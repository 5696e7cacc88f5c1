"""What a result was made from and with: commit, versions of packages."""

import subprocess
from importlib.metadata import version
from pathlib import Path

from fvlm.core.params import PARAMS

PACKAGES = ("torch", "transformers", "diffusers", "av", "numpy", "dvc", "webdataset", "mlflow")
CODE = ("fvlm", "pipeline", str(PARAMS), "dvc.yaml")  # what decides a result, besides the data


def git_commit(folder: Path) -> str:
    """The commit of the code, and whether code or parameters differ from it."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return "not in a git repository"
    return f"{commit} with local changes" if changed else commit


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that decide a result."""
    return {name: version(name) for name in PACKAGES}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
