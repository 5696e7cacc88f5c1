"""The tower in steps equals the stock model: without dropout, with it, and cut at any site."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvlm.cli.parts import Parts
from fvlm.core.errors import FvlmError, WeightsError
from fvlm.uncertainty.masks import Row, drop, kept_levels, row_keys
from fvlm.uncertainty.tower import Tower, load_tower

NAMES = [
    *("dinov2", "dinov2-swiglu", "dinov3", "dinov3-gated"),
    *("clip", "clip-projected", "clip-vision", "siglip2", "siglip2-vision"),
]
KEPT = kept_levels(0.2)

TowerOf = Callable[[str], Tower]


@pytest.fixture
def keys() -> Tensor:
    return row_keys(0, [Row(0, 0, sample) for sample in "xyz"], torch.device("cpu"))


@pytest.fixture(params=NAMES)
def tower(request: pytest.FixtureRequest, tower_of: TowerOf) -> Tower:
    return tower_of(request.param)


def linear_names(tower: Tower) -> set[str]:
    """The linear layers that a forward of the stock model calls."""
    called: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.update([name]))
        for name, module in tower.model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    tower.stock(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    for handle in handles:
        handle.remove()
    assert set(called.values()) == {1}
    return set(called)


@torch.inference_mode()
def test_without_dropout(tower: Tower, frames: Tensor) -> None:
    found = tower.check(frames)
    torch.testing.assert_close(found, tower.stock(frames), rtol=1e-4, atol=1e-5)
    assert found.std() > 0.1


@torch.inference_mode()
def test_every_linear_layer_can_drop(tower: Tower) -> None:
    assert len(tower.sites) == len(set(tower.sites))
    assert set(tower.sites) == linear_names(tower)


@torch.inference_mode()
def test_the_same_masks_inside_the_stock_model(tower: Tower, frames: Tensor, keys: Tensor) -> None:
    """Forward hooks on the stock model are the plain way to do it."""

    def hook(name: str) -> Any:
        def apply(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            value = output if output.ndim == 3 else output[:, None]
            return drop(value.clone(), keys, name, KEPT).view_as(output)

        return apply

    handles = [tower.model.get_submodule(n).register_forward_hook(hook(n)) for n in tower.sites]
    expected = tower.stock(frames)
    for handle in handles:
        handle.remove()
    found = tower.suffix(
        tower.prefix(frames, tower.sites), lambda name, value: drop(value.clone(), keys, name, KEPT)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - tower.stock(frames)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["dinov3", "siglip2", "clip"])
@torch.inference_mode()
def test_the_cut_changes_nothing(
    tower_of: TowerOf, frames: Tensor, keys: Tensor, name: str
) -> None:
    tower = tower_of(name)
    uncut = tower.prefix(frames, tower.sites)
    assert uncut.step == 1
    steps = []
    for site in tower.sites:

        def apply(name: str, value: Tensor, site: str = site) -> Tensor:
            return drop(value.clone(), keys, name, KEPT) if name == site else value

        state = tower.prefix(frames, [site])
        assert site in tower.steps[state.step].names
        torch.testing.assert_close(tower.suffix(state, apply), tower.suffix(uncut, apply))
        steps.append(state.step)
    assert steps == sorted(steps)
    assert steps[-1] >= 3 * 4


@pytest.mark.parametrize(("name", "tokens"), [("dinov2", 1), ("clip", 1), ("siglip2", 16)])
@torch.inference_mode()
def test_the_last_block_computes_what_the_embedding_needs(
    tower_of: TowerOf, frames: Tensor, name: str, tokens: int
) -> None:
    tower = tower_of(name)
    last = tower.steps[4 * 2 + 1].names
    state = tower.prefix(frames, last)
    assert [output.shape[1] for output in state.outputs] == [tokens, *[16 + (tokens == 1)] * 2]


@torch.inference_mode()
def test_a_misunderstood_model_is_noticed(tower_of: TowerOf, frames: Tensor) -> None:
    tower = tower_of("dinov2")
    tower.heads = 4
    with pytest.raises(FvlmError, match=r"the tower in steps differs by .* from Dinov2Model"):
        tower.check(frames)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("dinov2", {"model_type": "resnet"}, "model type 'resnet' is not supported, only dinov2"),
        ("siglip2-vision", {"vision_use_head": False}, "no pooling head"),
        ("clip-vision", {"attention_dropout": 0.1}, "dropout of its own must be 0"),
        ("dinov2", {"drop_path_rate": 0.1}, "dropout of its own must be 0"),
        ("dinov2", {"num_hidden_layers": 4}, "weights are missing"),
    ],
)
def test_models_that_cannot_be_used(
    folder_of: Callable[[str], Path], name: str, changes: dict[str, object], problem: str
) -> None:
    folder = folder_of(name)
    edit_config(folder, **changes)
    with pytest.raises(WeightsError, match=problem):
        load_tower(str(folder))


@pytest.mark.parametrize("name", ["dinov2", "clip-vision"])
def test_a_config_may_name_no_class(folder_of: Callable[[str], Path], name: str) -> None:
    folder = folder_of(name)
    expected = type(load_tower(str(folder))[0].model)
    edit_config(folder, architectures=None)
    assert type(load_tower(str(folder))[0].model) is expected


@pytest.mark.parametrize("name", NAMES)
def test_the_config_alone_tells_sites_and_pixels(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    """What `fvlm check` knows before any weight is read is what is loaded later."""
    folder, parts = folder_of(name), Parts()
    loaded, outline = load_tower(str(folder))[0], parts.tower("tiny", str(folder))
    assert parts.unusable == {}
    assert outline is not None
    assert outline.sites == loaded.sites
    assert outline.preparation.size == loaded.preparation.size
    assert outline.preparation.patch == loaded.preparation.patch


def test_a_folder_that_is_missing() -> None:
    with pytest.raises(WeightsError, match=r"uncertainty\.towers: nowhere: no such folder"):
        load_tower("nowhere")
