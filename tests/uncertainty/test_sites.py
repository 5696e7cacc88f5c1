"""Sites are declared by name or pattern, and every fault is named."""

import pytest

from fvlm.core.errors import ParamsError
from fvlm.uncertainty.sites import match_sites

KNOWN = ("layer.0.mlp.fc1", "layer.0.mlp.fc2", "layer.1.mlp.fc1", "layer.1.mlp.fc2", "head")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["layer.1.mlp.fc2", "layer.0.mlp.fc2"], ("layer.0.mlp.fc2", "layer.1.mlp.fc2")),
        (["*.fc1", "head"], ("layer.0.mlp.fc1", "layer.1.mlp.fc1", "head")),
        (["layer.[1-9].*"], ("layer.1.mlp.fc1", "layer.1.mlp.fc2")),
        (["*"], KNOWN),
    ],
)
def test_names_and_patterns(patterns: list[str], expected: tuple[str, ...]) -> None:
    assert match_sites(patterns, KNOWN, key="a.sites") == expected


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(
        ParamsError, match=r"^a\.sites: 'layer\.2\.mlp\.fc1' fits no .*: layer\.1\.mlp\.fc1, "
    ):
        match_sites(["head", "layer.2.mlp.fc1"], KNOWN, key="a.sites")


def test_a_layer_never_drops_twice() -> None:
    with pytest.raises(ParamsError, match=r"^a\.sites: head is named twice, by 'head' and '\*'"):
        match_sites(["head", "*"], KNOWN, key="a.sites")
