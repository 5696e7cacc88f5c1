"""For every test: one thread, no model hub, and randomness that starts the same and is restored."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fvlm.core.io import cache_folder

pytest_plugins = ["tests.networks", "tests.projects"]  # fixtures that several folders use


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny tensors are slower on many threads, and several test runs may share the machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is written into the user's cache; weights that lie there converted are only read."""
    before, users = os.environ.get("FVLM_CACHE"), cache_folder() / "weights"
    folder = tmp_path_factory.mktemp("cache")
    (folder / "weights").mkdir()
    for converted in users.iterdir() if users.is_dir() else ():
        (folder / "weights" / converted.name).symlink_to(converted.resolve())
    os.environ["FVLM_CACHE"] = str(folder)
    yield
    os.environ.pop("FVLM_CACHE")
    if before is not None:
        os.environ["FVLM_CACHE"] = before


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own; not made yet."""
    monkeypatch.setenv("FVLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach a model hub or depend on where the user's settings point."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def fixed_randomness() -> Iterator[None]:
    """Each test starts from the same seeds and leaves the global generators as it found them."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
