"""Scores depend on frame, name and parameters: not on batches, order, or where a run stopped."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from torch import Tensor
from torch.nn import functional as F

from fvlm.core.errors import FvlmError, ParamsError
from fvlm.core.params import Params, load_params
from fvlm.uncertainty import sampling
from fvlm.uncertainty.masks import LEVELS, Row, kept_levels
from fvlm.uncertainty.sampling import Sampler, UncertaintyParams, score_frames, split_passes
from fvlm.uncertainty.sites import match_sites
from fvlm.uncertainty.tower import State, Tower

CPU = torch.device("cpu")
TOWER = {"model": "tower", "sites": ["*"], "batch_size": "auto"}
Make = Callable[..., Sampler]


@pytest.fixture
def make(tower_of: Callable[[str], Tower], params_of: Callable[..., UncertaintyParams]) -> Make:
    """make(name, **params) -> Sampler."""

    def sampler(name: str = "dinov2", **values: Any) -> Sampler:
        params, tower = params_of(**values), tower_of(name)
        chosen = params.towers["tiny"]
        sites = match_sites(chosen.sites, tower.sites, key="sites")
        assert chosen.batch_size != "auto"
        return Sampler(tower, sites, params, CPU, chosen.batch_size)

    return sampler


def run(sampler: Sampler, frames: Tensor, samples: str, state: Path, **options: Any) -> Any:
    pixels = frames.numpy()
    return score_frames(sampler, pixels, samples, trials=2, title="t", state=state, **options)


@pytest.mark.parametrize("name", ["dinov3", "clip", "siglip2"])
@pytest.mark.parametrize("batch_size", [1, 3, 24, 100])
def test_batch_size(make: Make, frames: Tensor, tmp_path: Path, name: str, batch_size: int) -> None:
    expected = make(name).scores(frames, "xyz", trials=2)
    found = run(make(name, batch_size=batch_size), frames, "xyz", tmp_path / "state")
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert expected.shape == (2, 2, 2, 3)
    assert (expected > 1e-6).all()


def test_order_and_company(make: Make, frames: Tensor) -> None:
    sampler = make()
    expected = sampler.scores(frames, "xyz", trials=3)
    found = sampler.scores(frames.flip(0), "zyx", trials=3)
    np.testing.assert_allclose(found[..., ::-1], expected, rtol=1e-4)
    alone = sampler.scores(frames[1:2], "y", trials=2)
    np.testing.assert_allclose(alone, expected[:, :, :2, 1:2], rtol=1e-4)


def test_threads_change_nothing(make: Make, frames: Tensor, tmp_path: Path) -> None:
    """A frame is computed on one core, however many there are."""
    sampler, before, found = make(batch_size=1), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(sampler, frames, "xyz", tmp_path / f"state {threads}"))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.filterwarnings("ignore")  # of the compiler itself
@pytest.mark.parametrize("name", ["dinov3", "siglip2"])
def test_compiled_steps_score_alike(make: Make, frames: Tensor, name: str) -> None:
    """Every step behind the first site is whole graphs: for one row, the first number, and any."""
    torch._dynamo.reset()
    sampler, graphs = make(name, sites=["*.1.mlp.*"]), list[str]()

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(str(graph.graph))
        return graph.forward

    expected = sampler.scores(frames, "xyz", trials=2)
    sampler.tower.compile_steps(sampler.sites, backend=count)
    np.testing.assert_allclose(sampler.scores(frames, "xyz", trials=2), expected, rtol=1e-4)
    alone = sampler.scores(frames[1:2], "y", trials=2)
    np.testing.assert_allclose(alone, expected[..., 1:2], rtol=1e-4)
    (first,) = [n for n, step in enumerate(sampler.tower.steps) if sampler.sites[0] in step.names]
    assert len(graphs) >= 3 * (len(sampler.tower.steps) - first)


def test_names_seeds_and_trials_matter(make: Make, frames: Tensor) -> None:
    scores = make().scores(frames[:1], "x", trials=3)
    others = [
        make().scores(frames[:1], "y", trials=1),
        make(seed=1).scores(frames[:1], "x", trials=1),
    ]
    found = [*scores[0, -1, :, 0], *(other[0, -1, 0, 0] for other in others)]
    assert len(np.unique(np.round(found, 6))) == 5


def test_a_snapshot_is_a_run_of_fewer_passes(make: Make, frames: Tensor) -> None:
    long = make(passes=12, snapshots=[2, 5]).scores(frames, "xyz", trials=2)
    for place, passes in enumerate((2, 5)):
        short = make(passes=passes, snapshots=[]).scores(frames, "xyz", trials=2)
        np.testing.assert_allclose(long[:, place], short[:, -1], rtol=1e-4)


def test_few_sites_are_many_with_the_others_off(make: Make, frames: Tensor) -> None:
    """The prefix is an optimisation, also for the scores."""
    late = make(sites=["encoder.layer.2.mlp.fc2"])
    whole = replace(late, sites=tuple(late.tower.sites))
    state = late.tower.prefix(frames[:1], whole.sites)
    rows = [Row(0, number, "x") for number in range(4)]
    found = late.embed(late.tower.prefix(frames[:1], late.sites), rows)
    torch.testing.assert_close(found, late.embed(state, rows))


def test_oracle_through_the_whole_path(make: Make, frames: Tensor) -> None:
    """Dropout on CLIP's final projection y: variance p/(1-p) y_j^2 of every feature."""
    sampler = make("clip", sites=["visual_projection"], passes=4000, snapshots=[], p=0.2,
                   batch_size=1000)  # fmt: skip
    pre, post = sampler.scores(frames, "xyz", trials=1)[:, -1, 0]
    y = sampler.tower.stock(frames).detach().double()
    dropped = 1 - kept_levels(0.2) / LEVELS
    expected = dropped / (1 - dropped) * y.square().mean(dim=1)
    np.testing.assert_allclose(pre, expected.numpy(), rtol=0.08)
    assert (post < F.normalize(y, dim=1).square().mean(dim=1).numpy()).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.02)])
def test_rounded_scores_rank_alike(
    make: Make, frames: Tensor, dtype: str, tolerance: float
) -> None:
    """The scale is applied in float32; only matrix products are rounded."""
    exact = make(passes=64).scores(frames, "xyz", trials=1)
    rounded = make(passes=64, dtype=dtype).scores(frames, "xyz", trials=1)
    np.testing.assert_allclose(rounded[:, -1], exact[:, -1], rtol=tolerance)
    assert (rounded != exact).all()


def test_what_is_computed_how_often(
    make: Make, frames: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prefix once, up to the first site that drops; then many passes in one forward."""
    sampler = make(sites=["encoder.layer.1.mlp.fc2"], batch_size=12)  # 4 passes of 3 frames
    states, embedded = [], []
    prefix, suffix = Tower.prefix, Tower.suffix

    def spy_prefix(*given: Any) -> State:
        states.append(prefix(*given))
        return states[-1]

    def spy_suffix(*given: Any) -> Tensor:
        embedded.append(suffix(*given))
        return embedded[-1]

    monkeypatch.setattr(Tower, "prefix", spy_prefix)
    monkeypatch.setattr(Tower, "suffix", spy_suffix)
    sampler.scores(frames, "xyz", trials=2)
    assert [sampler.tower.steps[state.step].names for state in states] == [sampler.sites]
    assert [len(rows) for rows in embedded] == [3, *[12] * 4]  # 2 trials of 8 passes
    assert all(rows.is_inference() for rows in embedded)


def test_a_frame_on_each_core(make: Make, frames: Tensor, tmp_path: Path) -> None:
    """A GPU gets one frame after the other, and torch's threads stay as they are."""
    sampler, before, seen = make(batch_size=1), torch.get_num_threads(), []

    def look(pixels: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return pixels

    try:
        torch.set_num_threads(2)
        run(sampler, frames, "xyz", tmp_path / "state", change=look)
        with sampler.ahead() as ahead:
            assert ahead.workers == 2
        with replace(sampler, device=torch.device("meta")).ahead() as ahead:
            assert (ahead.workers, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1, 1]


def test_a_site_that_does_not_drop_is_noticed(make: Make, frames: Tensor) -> None:
    sampler = replace(make(), sites=("encoder.layer.0.mlp.fc1", "nowhere"))
    with pytest.raises(FvlmError, match=r"every site must drop once in a pass, got .*fc1': 1\}"):
        sampler.scores(frames, "xyz", trials=1)


def test_runs_of_passes_end_at_snapshots() -> None:
    assert list(split_passes([4, 9], 3)) == [range(3), range(3, 4), range(4, 7), range(7, 9)]
    assert list(split_passes([2], 0)) == [range(1), range(1, 2)]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_killed_and_resumed_equals_uninterrupted(
    make: Make, frames: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    expected = run(make(), frames, "xyz", tmp_path / "other")
    monkeypatch.setattr(sampling, "SAVE_SECONDS", 0.0)
    seen: list[int] = []

    def die(pixels: Tensor) -> Tensor:
        if len(seen) == finished:
            raise KilledError
        seen.append(1)
        return pixels

    state = tmp_path / "state"
    with pytest.raises(KilledError):
        run(make(), frames, "xyz", state, change=die)
    assert not finished or int(load(state.read_bytes())["done"][0]) == finished
    seen.clear()

    def count(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return pixels

    found = run(make(), frames, "xyz", state, change=count)
    assert sum(seen) == 3 - finished
    np.testing.assert_array_equal(found, expected)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_a_state_of_another_shape_is_refused(make: Make, frames: Tensor, tmp_path: Path) -> None:
    run(make(), frames, "xyz", tmp_path / "state")
    with pytest.raises(FvlmError, match=r"expected scores \(2, 1, 2, 3\), got \(2, 2, 2, 3\)"):
        run(make(snapshots=[]), frames, "xyz", tmp_path / "state")


class Sections(Params):
    uncertainty: UncertaintyParams


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"p": 0.0}, "uncertainty.p: must be greater than 0"),
        ({"p": 1.0}, "uncertainty.p: must be less than 1"),
        ({"p": 1e-6}, r"uncertainty.p: must be between 2\^-16"),
        ({"passes": 1, "snapshots": []}, "uncertainty.passes: must be greater than or equal to 2"),
        ({"trials": 1}, "uncertainty.trials: must be greater than or equal to 2"),
        ({"snapshots": [8]}, "snapshots must ascend from 2 on and stay below passes"),
        ({"snapshots": [1]}, "snapshots must ascend from 2 on"),
        ({"towers": {}}, "uncertainty.towers"),
        ({"towers": {"a b": TOWER}}, "uncertainty.towers.a b"),
        ({"towers": {"a": TOWER | {"sites": []}}}, "uncertainty.towers.a.sites"),
        ({"towers": {"a": TOWER | {"sites": "x"}}}, "towers.a.sites: expected list, got 'x'"),
        ({"towers": {"a": TOWER | {"batch_size": 0}}}, "uncertainty.towers.a.batch_size"),
        ({"towers": {"a": TOWER | {"sights": []}}}, "uncertainty.towers.a.sights: unknown key"),
        ({"pases": 4}, "uncertainty.pases: unknown key; did you mean `passes`?"),
    ],
)
def test_faults_of_parameters(
    params_of: Callable[..., UncertaintyParams],
    changes: dict[str, Any],
    problem: str,
    tmp_path: Path,
) -> None:
    values = params_of().model_dump() | changes
    (tmp_path / "params.yaml").write_text(json.dumps({"uncertainty": values}))
    with pytest.raises(ParamsError, match=problem):
        load_params(Sections, tmp_path / "params.yaml")
