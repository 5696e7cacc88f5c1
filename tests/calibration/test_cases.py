"""Cases are judged by what evaluate says of them; models and clips that are made for them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fvlm.calibration.cases import (
    FILMS,
    HANDICAP,
    judge_cases,
    missed_cases,
    save_handicapped,
    save_message_channel,
)
from fvlm.clips.batch import Batch
from fvlm.model.build import model_of
from fvlm.model.foveated import FoveatedModel, frame_losses
from fvlm.model.saved import load_model
from fvlm.statistics.arms import ARMS, ClipName, Losses
from fvlm.statistics.evaluation import HeldOut
from fvlm.statistics.ratio import DYNAMIC
from fvlm.statistics.summary import summarize
from tests import tiny

CLIPS, T = 24, 6


def held_out(
    clips: list[ClipName], *, early: float, gain: float = 1.2, message: float = 2.0
) -> HeldOut:
    """Coarse is `gain` times fine loss from frame 3 on and `early` times before."""
    rng = np.random.default_rng(0)
    base = np.tile(rng.uniform(1, 2, (FILMS, T)), (len(clips) // FILMS, 1))
    made: Losses = dict.fromkeys((*ARMS, "message_only"), 2.0 * base)
    made |= {"fine": base, "message_only": message * base}
    made["coarse"] = base * np.array([early] * 2 + [gain] * (T - 2)) * (1 + base / 1000)
    return summarize({0: made, 1: made}, clips, samples=200, seed=0).held_out


def cases(**changes: HeldOut) -> dict[str, HeldOut]:
    """All three as they must be."""
    videos = [ClipName(f"c{n}", f"v{n}") for n in range(CLIPS)]
    films = [ClipName(f"c{n}", f"v{n}", f"f{n % FILMS}") for n in range(CLIPS)]
    made = {
        "handicapped_coarse": held_out(videos, early=1.2),
        "message_channel": held_out(videos, early=1.0, message=1.0),
        "replicates": held_out(films, early=1.0),
        "replicates_alone": held_out(videos[:FILMS], early=1.0),
    }
    return made | changes


def test_all_three_are_caught() -> None:
    judged = judge_cases(cases())
    assert {name: case.caught for name, case in judged.items()} == {
        "handicapped_coarse": 1,
        "message_channel": 1,
        "replicates": 1,
    }
    assert missed_cases(judged) == []


VIDEOS = [ClipName(f"c{n}", f"v{n}") for n in range(CLIPS)]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("handicapped_coarse", held_out(VIDEOS, early=1.0)),  # a verdict was given
        ("handicapped_coarse", held_out(VIDEOS, early=1.2, gain=1.02)),  # it tempts nobody
        ("message_channel", held_out(VIDEOS, early=1.0)),  # the control did not see it
        ("message_channel", held_out(VIDEOS, early=1.0, message=1.0, gain=1.02)),
        ("replicates", held_out(VIDEOS, early=1.0)),  # copies counted as videos
    ],
)
def test_what_fools_the_verdict_is_told(name: str, found: HeldOut) -> None:
    judged = judge_cases(cases(**{name: found}))
    assert [case for case, result in judged.items() if not result.caught] == [name]
    (line,) = missed_cases(judged)
    assert line.startswith(f"{name}_caught is 0, must be 1: verdict {judged[name].verdict}")


def save(folder: Path, **params: Any) -> FoveatedModel:
    """A model whose predictions hang on all it reads."""
    torch.manual_seed(0)
    architecture = tiny.architecture(query_role="question", **params)
    model = model_of(architecture, FoveatedModel).eval()
    for name, parameter in model.head.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(parameter)
    tiny.save_model(model, architecture, folder)
    return model


def test_a_handicapped_model_differs_in_its_coarse_pass_alone(tmp_path: Path) -> None:
    model = save(tmp_path / "trained")
    inputs, latents = torch.randn(6, 4, 10, 16), torch.zeros(6, 4, 4, 5, 5)
    with torch.no_grad():  # clips that its fine pass predicts: whatever is changed is worse
        for _ in range(latents.shape[1]):
            latents = model(inputs, latents).fine
    batch = Batch(inputs, latents, list("abcdef"))
    save_handicapped(tmp_path / "trained", tmp_path / "spoilt", batch)
    spoilt = load_model(tmp_path / "spoilt")
    changed = {
        name
        for (name, old), new in zip(model.named_parameters(), spoilt.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed == {"q_static", "mode_tokens.coarse"}
    with torch.no_grad():
        found = spoilt(batch.inputs, batch.latents)
    coarse, fine = (frame_losses(part, batch.latents) for part in (found.coarse, found.fine))
    assert coarse[:, DYNAMIC].mean() >= HANDICAP * fine[:, DYNAMIC].mean()


def test_a_message_channel_looks_nowhere_and_its_queries_say_everything(tmp_path: Path) -> None:
    save(tmp_path / "trained", query_layers=2)
    save_message_channel(tmp_path / "trained", tmp_path / "channel")
    channel = load_model(tmp_path / "channel")
    inputs = torch.randn(3, 4, 10, 16)
    with torch.no_grad():
        cache = channel.cache_clips(inputs)
        coarse, fine = channel.run_passes(cache, 3, 4)
        message = channel.run_pass(cache, fine.queries, mode="fine", look=coarse.queries)
    for output in (coarse, fine):  # a token pays attention to itself, too
        assert torch.allclose(output.attention, torch.tensor(1 / 11))
    assert torch.allclose(message.predictor, fine.predictor, atol=1e-6)
    assert (fine.predictor - coarse.predictor).abs().max() > 0.01
    assert torch.equal(
        fine.predictor[:, 0], channel.run_pass(cache, coarse.queries, mode="fine").predictor[:, 0]
    )
