"""Where the CPU time of a training step goes, by part of the model.

A profiler's operators carry no module. Those of a forward are found by a range around the module;
those of the backward pass by the number that autograd gave to the forward's operator.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from fvlm.clips.batch import Batch
from fvlm.model.foveated import FoveatedModel

PREFIX, STEP, REST = "part: ", "step", "rest"
BACKWARD = "autograd::engine::evaluate_function"
# Outside of the model, by the start of an operator's name. AdamW's own operators are fused.
OUTSIDE = {"Optimizer.": "optimizer", "aten::_foreach": "gradient clipping"}
Seconds = dict[str, dict[str, float]]


def parts_of(model: FoveatedModel) -> dict[str, list[nn.Module]]:
    """The modules whose time is counted together."""
    parts: dict[str, list[nn.Module]] = {
        "language model": [*model.language.layers, model.language.norm, model.language.rotary_emb],
        "query attention": [model.attention],
        "projections": [model.to_query, model.to_visual, model.visual_norm],
        "head: FiLM": [model.head.film],
        "head: convolutions": [model.head.before, model.head.after],
    }
    return parts | ({"encoder": [model.encoder]} if model.encoder else {})


def label(model: FoveatedModel) -> None:
    """From now on every forward of a part is a range of the profiler."""
    open_ranges: list[Any] = []

    def watch(name: str, module: nn.Module) -> None:
        def enter(*_: object) -> None:
            open_ranges.append(record_function(PREFIX + name))
            open_ranges[-1].__enter__()

        def leave(*_: object) -> None:
            open_ranges.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    for name, modules in parts_of(model).items():
        for module in modules:
            watch(name, module)


def labelled(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; waiting for one is a range of the profiler."""
    while True:
        with record_function(PREFIX + "waiting for the loader"):
            batch = next(batches)
        yield batch


def profile_step(step: Callable[[], object], *, steps: int) -> Seconds:
    """Seconds of one step on its own thread: by part, forward and backward."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            with record_function(STEP):
                step()
    events = sorted(found.events(), key=lambda event: event.time_range.start)
    threads = {event.thread for event in events if event.name == STEP}
    own = [event for event in events if event.thread in threads and _up(event)[-1].name == STEP]
    # Of operators with the same number the last one is that whose backward has it.
    parts = {event.sequence_nr: _part(event) for event in own if not _backward(event)}
    seconds: Seconds = {}
    for event in own:
        backward = _backward(event)
        part = parts.get(backward.sequence_nr, REST) if backward else _part(event)
        row = seconds.setdefault(part, {"forward": 0.0, "backward": 0.0})
        row["backward" if backward else "forward"] += event.self_cpu_time_total / 1e6 / steps
    return seconds


def print_profile(title: str, seconds: Seconds) -> None:
    """A row for every part, the largest first, as shares of the step."""
    total = sum(sum(row.values()) for row in seconds.values())
    print(f"\n| {title}: {total:.2f} s | forward | backward | both |\n|---|---:|---:|---:|")
    for part, row in sorted(seconds.items(), key=lambda item: -sum(item[1].values())):
        shares = [row["forward"], row["backward"], sum(row.values())]
        print(f"| {part} |", " | ".join(f"{share / total:.1%}" for share in shares), "|")


def _up(event: Any) -> list[Any]:
    """The event, what called it, and so on."""
    found = [event]
    while found[-1].cpu_parent is not None:
        found.append(found[-1].cpu_parent)
    return found


def _backward(event: Any) -> Any:
    """The step of the backward pass that the event belongs to, if any."""
    return next((one for one in _up(event) if one.name.startswith(BACKWARD)), None)


def _part(event: Any) -> str:
    names = [one.name for one in _up(event)]
    for start, part in OUTSIDE.items():
        if any(name.startswith(start) for name in names):
            return part
    inner = (name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX))
    return next(inner, REST)
