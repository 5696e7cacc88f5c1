"""Several processes train as one: real process groups over gloo, in forked processes."""

import faulthandler
import json
import os
import re
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from fvlm.core.errors import ParamsError
from fvlm.training import distributed
from fvlm.training.distributed import join_processes, share_of
from fvlm.training.loop import OutOfTimeError

MakeTrial = Callable[[str], Any]  # Trial of conftest.py, which tests cannot import
STOPPED, FAILED = 75, 1
PATIENCE = 110  # seconds until a process that hangs says where; it is killed then


def run_in_processes(trial: Any, count: int) -> list[int]:
    """Train in that many processes; their exit codes. What rank n saw goes to seen-n.json."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trial.root.mkdir(exist_ok=True)
    context = get_context("fork")
    processes = [context.Process(target=_run, args=(trial, n, count, port)) for n in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE + 10)
        process.kill()
        process.join()
    return [process.exitcode or 0 for process in processes]


def _run(trial: Any, rank: int, count: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    faulthandler.dump_traceback_later(PATIENCE, file=2)
    code = 0
    try:
        with join_processes():
            trial.run()
    except OutOfTimeError:
        code = STOPPED
    except BaseException:
        traceback.print_exc()
        code = FAILED
    finally:
        (trial.root / f"seen-{rank}.json").write_text(json.dumps(trial.seen))
        sys.stderr.flush()
        os._exit(code)  # what the test's own process has to end is not theirs: they could wait


def seen(trial: Any, rank: int) -> list[str]:
    clips: list[str] = json.loads((trial.root / f"seen-{rank}.json").read_text())
    return clips


def assert_same_training(one: Any, other: Any) -> None:
    """Curves and final weights are those of `one`, to the rounding of sums.

    That is 1e-7 of a sum; found were up to 3e-6 of a logged value and 2e-6 in a weight. AdamW
    divides each gradient by its own size, so that of one near 0 the rounding counts, too: it may
    move a weight by a part of the rate, of which the tolerance is a hundredth.
    """
    for row, same in zip(one.last_state().history, other.last_state().history, strict=True):
        assert row == pytest.approx(same, rel=5e-5)
    weights = one.model.state_dict()
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "parallel", "residual"),
    [(2, "ddp", True), (3, "ddp", False), (2, "fsdp", True), (2, "fsdp", False)],
)
def test_processes_train_as_one_does_and_share_its_clips(
    make_trial: MakeTrial, count: int, parallel: str, residual: bool
) -> None:
    alone, shared = make_trial("alone"), make_trial("shared")
    for trial in (alone, shared):
        if residual:
            trial.give_residual_head()
        trial.change(batch_size=6, max_samples=72, parallel=parallel)
    alone.run()
    assert run_in_processes(shared, count) == [0] * count
    assert_same_training(alone, shared)
    part = 6 // count
    for rank in range(count):
        mine = [clip for n, clip in enumerate(alone.seen) if n % 6 // part == rank]
        assert seen(shared, rank) == mine


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_token_noise_is_the_same_however_the_clips_are_divided(
    make_trial: MakeTrial, parallel: str
) -> None:
    alone, shared = make_trial("alone"), make_trial("shared")
    for trial in (alone, shared):
        trial.change(token_noise=0.5, max_samples=72)
    alone.change(batch_size=4, gradient_accumulation_steps=3).run()
    shared.change(batch_size=6, gradient_accumulation_steps=2, parallel=parallel)
    assert run_in_processes(shared, 2) == [0, 0]
    assert_same_training(alone, shared)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_under_fsdp_a_process_only_ever_holds_its_part(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, parallel: str
) -> None:
    """Of the weights; so the whole model must not move to the device before it is divided."""
    trial = make_trial("shared").change(batch_size=6, max_samples=12, parallel=parallel)
    run, to = trial.run, torch.nn.Module.to
    whole = sum(value.numel() for value in trial.make_model().parameters())
    moved: list[str] = []

    def recorded_to(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        moved.append(type(module).__name__)
        return to(module, device)

    def run_and_count() -> None:
        run()
        values = [value.data for value in trial.model.parameters()]
        parts = [value.to_local() if isinstance(value, DTensor) else value for value in values]
        found = {"held": sum(part.numel() for part in parts), "moved": moved}
        (trial.root / f"{distributed.rank()}.json").write_text(json.dumps(found))

    trial.run = run_and_count
    monkeypatch.setattr(torch.nn.Module, "to", recorded_to)
    assert run_in_processes(trial, 2) == [0, 0]
    found = [json.loads((trial.root / f"{rank}.json").read_text()) for rank in range(2)]
    held = [part["held"] for part in found]
    if parallel == "ddp":
        assert (held, found[0]["moved"]) == ([whole, whole], ["Losses"])
    else:
        assert (sum(held), found[0]["moved"]) == (whole, [])
        assert max(held) < 0.6 * whole


def test_under_fsdp_bfloat16_is_gathered_in_it_and_kept_in_float32(make_trial: MakeTrial) -> None:
    alone, shared = make_trial("alone"), make_trial("shared")
    for trial in (alone, shared):
        trial.change(batch_size=6, max_samples=72, dtype="bfloat16", parallel="fsdp")
    alone.run()
    make_model, run = shared.make_model, shared.run
    gathered: set[str] = set()

    def make() -> Any:
        model = make_model()
        for block in model.language.layers:
            linear = block.mlp.up_proj
            linear.register_forward_hook(lambda part, *_: gathered.add(str(part.weight.dtype)))
        return model

    def run_and_tell() -> None:
        run()
        kept = {str(value.dtype) for value in shared.model.parameters()}
        types = {"gathered": sorted(gathered), "kept": sorted(kept)}
        (shared.root / f"{distributed.rank()}.json").write_text(json.dumps(types))

    shared.make_model, shared.run = make, run_and_tell
    assert run_in_processes(shared, 2) == [0, 0]
    types = json.loads((shared.root / "0.json").read_text())
    assert types == {"gathered": ["torch.bfloat16"], "kept": ["torch.float32"]}
    shared.make_model = make_model
    for row, same in zip(alone.last_state().history, shared.last_state().history, strict=True):
        assert row == pytest.approx(same, rel=2e-2)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_trained_encoder_is_shared_too(make_trial: MakeTrial, parallel: str) -> None:
    """Frames through an encoder whose last block reads the queries, recomputed in the backward."""
    alone, shared = make_trial("alone"), make_trial("shared")
    for trial in (alone, shared):
        trial.give_encoder()
        trial.change(batch_size=6, max_samples=24, parallel=parallel)
    alone.run()
    assert run_in_processes(shared, 2) == [0, 0]
    assert_same_training(alone, shared)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("text", "tied"), [("condition", True), ("caption", True), ("caption", False)]
)
def test_captions_are_shared_too(
    make_trial: MakeTrial, text: str, tied: bool, parallel: str
) -> None:
    """Each process pads to its own longest caption; at times one has no caption at all."""
    alone, shared = make_trial("alone"), make_trial("shared")
    for trial in (alone, shared):
        trial.give_captions(text, tied=tied)
        trial.change(batch_size=6, max_samples=72, parallel=parallel)
    alone.run()
    assert run_in_processes(shared, 2) == [0, 0]
    assert_same_training(alone, shared)
    columns = [seen_columns(shared, rank) for rank in range(2)]
    assert any(one != other for one, other in zip(*columns, strict=True))
    assert 0 in columns[0] + columns[1]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("place", "prefers"), [("before", False), ("after", False), ("before", True)]
)
def test_answers_and_preferences_are_shared_too(
    make_trial: MakeTrial, place: str, prefers: bool, parallel: str
) -> None:
    """Each process pads to its own longest question and answer."""
    alone, shared = make_trial("alone"), make_trial("shared")
    for trial in (alone, shared):
        trial.give_answers(place, prefers=prefers)
        trial.change(batch_size=6, max_samples=72, parallel=parallel)
    alone.run()
    assert run_in_processes(shared, 2) == [0, 0]
    assert_same_training(alone, shared)


@pytest.mark.parametrize("text", ["condition", "caption"])
@pytest.mark.parametrize(("counts", "parallel"), [((2, 3, 1), "ddp"), ((1, 2, 1), "fsdp")])
def test_with_captions_it_goes_on_with_other_counts(
    make_trial: MakeTrial, text: str, counts: tuple[int, ...], parallel: str
) -> None:
    alone, shared = make_trial("alone"), make_trial("shared")
    for trial in (alone, shared):
        trial.give_captions(text)
        trial.change(batch_size=6, gradient_accumulation_steps=1, parallel=parallel)
    alone.run()
    for processes in counts[:-1]:
        shared.change(max_hours=1e-9)
        assert run_in_processes(shared, processes) == [STOPPED] * processes
    shared.change(max_hours=1.0)
    assert run_in_processes(shared, counts[-1]) == [0] * counts[-1]
    assert_same_training(alone, shared)


def seen_columns(trial: Any, rank: int) -> list[int]:
    """Words of the longest caption of each forward of 3 clips."""
    lengths = [len(trial.captions[key].split()) for key in seen(trial, rank)]
    return [max(lengths[n : n + 3]) for n in range(0, len(lengths), 3)]


@pytest.mark.parametrize(("counts", "parallel"), [((2, 3, 1), "ddp"), ((1, 2, 1), "fsdp")])
def test_resumed_with_other_counts_it_goes_on_with_the_same_clips(
    make_trial: MakeTrial, counts: tuple[int, ...], parallel: str
) -> None:
    """Stopped after steps 1 and 2; checkpoints of any number of processes are alike."""
    alone, shared = make_trial("alone"), make_trial("shared")
    for trial in (alone, shared):
        trial.change(batch_size=6, gradient_accumulation_steps=1, parallel=parallel)
    alone.run()
    order = []
    for number, processes in enumerate(counts, start=1):
        last = number == len(counts)
        shared.seen.clear()
        shared.change(max_hours=1.0 if last else 1e-9)
        codes = run_in_processes(shared, processes)
        assert codes == [0 if last else STOPPED] * processes
        size = 6 // processes
        order += [
            clip
            for step in range(6 - len(counts) + 1 if last else 1)
            for rank in range(processes)
            for clip in seen(shared, rank)[step * size : (step + 1) * size]
        ]
    assert order == alone.seen
    assert_same_training(alone, shared)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_out_of_time_and_started_again_end_as_two_do_without_a_stop(
    make_trial: MakeTrial, parallel: str
) -> None:
    """To the last bit: weights, moments, curves."""
    whole, stopped = make_trial("whole"), make_trial("stopped")
    for trial in (whole, stopped):
        trial.change(batch_size=6, max_samples=72, parallel=parallel)
    assert run_in_processes(whole, 2) == [0, 0]
    stopped.change(max_hours=1e-9)
    assert run_in_processes(stopped, 2) == [STOPPED, STOPPED]
    assert [path.name for path in stopped.checkpoints().folder.iterdir()] == ["step-00000001"]
    stopped.change(max_hours=1.0)
    assert run_in_processes(stopped, 2) == [0, 0]
    assert stopped.last_checkpoint() == whole.last_checkpoint()


def test_a_stop_of_one_process_stops_all_after_the_same_step(make_trial: MakeTrial) -> None:
    trial = make_trial("shared").change(batch_size=6)
    slow = trial.params.model_copy(update={"max_hours": 1e-9})
    run = trial.run

    def run_with_another_deadline() -> Any:
        if distributed.rank() == 1:
            trial.params = slow
        return run()

    trial.run = run_with_another_deadline
    assert run_in_processes(trial, 2) == [STOPPED, STOPPED]
    assert [path.name for path in trial.checkpoints().folder.iterdir()] == ["step-00000001"]


def test_an_error_of_one_process_ends_the_others(make_trial: MakeTrial) -> None:
    trial = make_trial("shared").change(batch_size=6)
    load = trial.load_batch

    def failing(positions: range) -> Any:
        if distributed.rank() == 1 and positions.start >= 12:
            raise OSError("disk on fire")
        return load(positions)

    trial.load_batch = failing
    assert run_in_processes(trial, 2) == [FAILED, FAILED]


def test_a_loss_that_is_not_finite_in_one_process_stops_all(
    make_trial: MakeTrial, capfd: pytest.CaptureFixture[str]
) -> None:
    """That process names its clips, and no other one accuses its own."""
    trial = make_trial("shared").change(batch_size=6)
    load = trial.load_batch

    def poisoned(positions: range) -> Any:
        batch = load(positions)
        if distributed.rank() == 1:
            batch.latents.fill_(float("nan"))
        return batch

    trial.load_batch = poisoned
    assert run_in_processes(trial, 2) == [FAILED, FAILED]
    said = re.findall(r"inspect its clips: (.*)", capfd.readouterr().err)
    assert sorted(said) == ["another process names them", ", ".join(seen(trial, 1)[:6])]
    assert not list(trial.checkpoints().folder.glob("step-*"))


def test_processes_of_different_trainings_refuse_each_other(make_trial: MakeTrial) -> None:
    trial = make_trial("shared")

    def run() -> None:
        digest = f"{distributed.rank():064x}"[::-1]
        distributed.check_same("data", "a" * 64)
        distributed.check_same("data", digest)

    trial.run = run
    assert run_in_processes(trial, 2) == [0, FAILED]


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "count", lambda: 4)
    with pytest.raises(ParamsError, match=r"train.batch_size \(6\) must be a multiple of the 4 pr"):
        share_of(range(6))
