"""For every test: one thread, no model hub, and randomness that starts the same and is restored."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

pytest_plugins = ["tests.networks", "tests.projects"]  # fixtures that several folders use


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny tensors are slower on many threads, and several test runs may share the machine."""
    torch.set_num_threads(1)


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
