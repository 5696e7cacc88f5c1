"""What is compiled and what is computed again: another schedule, the same values."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, LlamaModel

from fvlm.clips.batch import Captions
from fvlm.encoders.dino import DinoEncoder
from fvlm.model.foveated import FoveatedModel
from fvlm.model.query_attention import DeepAttention, ShallowAttention
from fvlm.training.blocks import CompileModes, compile_parts, recompute_blocks
from tests import tiny

B, T, LAYERS, SIZE, WORDS = 2, 4, 3, 28, 16
KINDS = ("features", "residual", "deep", "frames", "condition", "caption")
PARTS = ("encoder", "language", "head")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler itself


class Counter:
    """A backend of torch.compile that runs every graph as it is and counts its operations."""

    def __init__(self) -> None:
        self.operations: list[int] = []
        self.modes: set[str] = set()

    def __call__(
        self, graph: torch.fx.GraphModule, _: list[Tensor], mode: str = "default"
    ) -> Callable[..., Any]:
        calls = ("call_function", "call_method")
        self.operations.append(sum(node.op in calls for node in graph.graph.nodes))
        self.modes.add(mode)
        return graph.forward


@pytest.fixture(autouse=True)
def forget_graphs() -> None:
    torch._dynamo.reset()


def make_model(kind: str) -> FoveatedModel:
    """features: shallow; deep: queries run through two blocks; frames: so, encoder trained."""
    torch.manual_seed(0)
    encoder = tail = None
    if kind in ("deep", "frames"):
        config = Dinov2Config(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=7
        )
        encoder = DinoEncoder(Dinov2Model(config))
        tail = encoder.cut(2)
    text: Any = kind if kind in ("condition", "caption") else "none"
    model = FoveatedModel(
        language=LlamaModel(tiny.llama(num_hidden_layers=LAYERS, vocab_size=WORDS)),
        attention=DeepAttention(tail) if tail else ShallowAttention(16, temperature=1.0),
        latent_shape=(2, 4, 4),
        fine_iterations=2,
        encoder=encoder if kind == "frames" else None,
        head="residual" if kind == "residual" else "film",
        head_channels=8,
        text=text,
    )
    if text == "none":
        model.language.set_input_embeddings(nn.Identity())
    if kind == "frames":
        model.train_encoder()
    return model.train()


def make_inputs(kind: str, *, words: int = 3) -> tuple[Tensor, Tensor, Captions | None]:
    drawn = torch.Generator().manual_seed(1)
    inputs = torch.randn(B, T, 17, 16, generator=drawn)
    if kind == "frames":
        shape = (B, T, 3, SIZE, SIZE)
        inputs = torch.randint(256, shape, generator=drawn, dtype=torch.uint8)
    captions = None
    if kind in ("condition", "caption"):
        mask = torch.ones(B, words, dtype=torch.bool)
        mask[0, 0 if kind == "condition" else -1] = False  # padded on the left, on the right
        captions = Captions(torch.randint(WORDS, (B, words), generator=drawn), mask)
    return inputs, torch.randn(B, T, 2, 4, 4, generator=drawn), captions


def run(model: FoveatedModel, kind: str, **sizes: int) -> dict[str, Tensor]:
    """The loss and every gradient."""
    model.zero_grad()
    inputs, latents, captions = make_inputs(kind, **sizes)
    found = model(inputs, latents, captions)
    loss = (found.coarse - latents).square().mean() + (found.fine - latents).square().mean()
    if found.caption_fine is not None:
        loss = loss + found.caption_coarse.mean() + found.caption_fine.mean()
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], *, tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=tolerance, atol=tolerance, msg=name)


def count(kind: str, modes: Any, **sizes: int) -> Counter:
    """The graphs of a forward compiled in these modes; loss and gradients must stay."""
    expected, model, counter = run(make_model(kind), kind, **sizes), make_model(kind), Counter()
    names = model.state_dict().keys()
    compile_parts(model, modes, backend=counter)
    assert_same(expected, run(model, kind, **sizes), tolerance=1e-6)
    assert model.state_dict().keys() == names
    return counter


def modes(part: str, mode: str = "default") -> CompileModes:
    return CompileModes.model_validate(dict.fromkeys(PARTS, "none") | {part: mode})


@cache
def graphs_of(kind: str, part: str) -> list[int]:
    """Operations of each graph where this part alone is compiled."""
    torch._dynamo.reset()
    return count(kind, modes(part)).operations


@pytest.mark.parametrize(
    ("kind", "part", "graphs", "operations"),
    [
        # Coarse queries are one vector for all frames, fine ones differ: each has its own graph.
        ("features", "encoder", 2, 10),
        ("deep", "encoder", 3, 100),  # keys and values of frames; coarse and fine queries
        ("frames", "encoder", 4, 120),  # and the blocks before, all in one
        ("features", "language", 1, 30),  # one for every block and every pass
        ("caption", "language", 2, 60),  # the middle pass has no caption
        ("features", "head", 2, 15),  # latents of before; both predictions
        ("residual", "head", 2, 17),
    ],
)
def test_every_part_is_compiled_in_few_graphs_that_hold_its_operations(
    kind: str, part: str, graphs: int, operations: int
) -> None:
    found = graphs_of(kind, part)
    assert len(found) == graphs
    assert sum(found) >= operations


def test_no_part_is_compiled_unless_asked() -> None:
    assert count("frames", "none").operations == []


@pytest.mark.parametrize("kind", KINDS)
def test_all_parts_together_compute_the_same(kind: str) -> None:
    apart = sum(len(graphs_of(kind, part)) for part in PARTS)
    torch._dynamo.reset()
    assert len(count(kind, "default").operations) == apart


def test_captions_of_many_lengths_need_two_graphs() -> None:
    """The first length, and from the second on one for all: a pass without a caption is one."""
    model, counter = make_model("caption"), Counter()
    compile_parts(model, modes("language"), backend=counter)
    for words in (3, 4, 5, 6, 7):
        expected = run(make_model("caption"), "caption", words=words)
        assert_same(expected, run(model, "caption", words=words), tolerance=1e-6)
    assert len(counter.operations) == 2


@pytest.mark.parametrize("mode", ["default", "max-autotune", "reduce-overhead"])
def test_the_mode_reaches_the_compiler(mode: Any) -> None:
    assert count("features", mode).modes == {mode}


def test_what_breaks_the_graph_is_an_error() -> None:
    model = make_model("features")
    model.head.after.append(Breaking())
    compile_parts(model, modes("head"), backend=Counter())
    with pytest.raises(torch._dynamo.exc.Unsupported):
        run(model, "features")


class Breaking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_running_blocks_again_saves_memory_and_changes_no_gradient(
    kind: str, compiled: bool
) -> None:
    kept: dict[Any, int] = {}
    expected = run(make_model(kind), kind)
    for which in ("none", "encoder", "all"):
        if compiled and which == "encoder" and kind not in ("deep", "frames"):
            kept[which] = kept["none"]  # there is no encoder: what is compiled is as without
            continue
        torch._dynamo.reset()
        model, sizes = make_model(kind), list[int]()
        if compiled and which != "none":  # these graphs keep what the model itself keeps
            compile_parts(model, "default", backend=Counter())
        recompute_blocks(model, which)

        def keep(value: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(value.nbytes)
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            model(*make_inputs(kind))
        kept[which] = sum(sizes)
        tolerance = 1e-6 if compiled else 0.0
        assert_same(expected, run(model, kind), tolerance=tolerance)
    assert kept["all"] < 0.6 * kept["encoder"]
    assert kept["encoder"] <= kept["none"]
    assert (kept["encoder"] < 0.8 * kept["none"]) == (kind == "frames")
