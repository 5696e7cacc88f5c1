import resource
from types import SimpleNamespace

import pytest
import torch

from fvlm.core.device import peak_memory_gib


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_resident_memory_is_counted_in_the_unit_of_the_platform(
    platform: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    usage = SimpleNamespace(ru_maxrss=3 * 2**30 // unit)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    assert peak_memory_gib(torch.device("cpu")) == 3
