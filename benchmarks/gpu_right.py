"""Is everything right on a GPU? Comparisons with the CPU, of random weights; each says `ok`."""

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaModel

from benchmarks import bench_step as bench
from fvlm.clips.batch import Batch, Captions
from fvlm.clips.reader import BatchMemory
from fvlm.core.device import default_device
from fvlm.core.params import PARAMS, read_yaml
from fvlm.encoders.dino import DinoEncoder
from fvlm.encoders.frames import EncodeParams, FrameEncoder
from fvlm.encoders.vae import VaeCodec
from fvlm.model.autoregressive import run_autoregressive
from fvlm.model.captions import FUSED
from fvlm.model.foveated import FoveatedModel
from fvlm.model.language import fuse_norms
from fvlm.model.query_attention import DeepAttention, ShallowAttention
from fvlm.training.blocks import compile_parts, recompute_blocks
from fvlm.training.checkpoint import Checkpoints
from fvlm.training.distributed import distribute
from fvlm.training.loop import Losses, OutOfTimeError, Step, train, train_step
from fvlm.training.objective import batch_losses
from fvlm.training.optim import TrainParams, make_optimizer
from fvlm.uncertainty.masks import Row, drop, kept_levels, row_keys
from fvlm.uncertainty.pixels import Preparation
from fvlm.uncertainty.sampling import Sampler, UncertaintyParams
from fvlm.uncertainty.tower import Tower

DEVICE, CPU = default_device(), torch.device("cpu")
CUDA = DEVICE.type == "cuda"
LATENT = (4, 32, 32) if CUDA else (4, 8, 8)
SIDE = 126 if CUDA else 42  # pixels of the frames that are compared
Found = dict[str, Any]


def without_kernels(graph: Any, inputs: Any, **_: Any) -> Any:
    """A backend of torch.compile that runs what a compiler would be given, in any mode."""
    return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


BACKEND: Any = "inductor" if CUDA else without_kernels


def apart(one: Any, other: Any) -> float:
    """Relative distance."""
    one, other = (torch.as_tensor(value).detach().cpu().double() for value in (one, other))
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


def stock_dino(blocks: int) -> Dinov2Model:
    """DINOv2 ViT-S/14."""
    torch.manual_seed(1)
    sizes: Any = {"num_hidden_layers": blocks, "num_attention_heads": 6, "patch_size": 14}
    model: Dinov2Model = Dinov2Model(Dinov2Config(hidden_size=384, **sizes)).eval()
    return model


def small_model(*, deep: int = 0, frames: bool = False, text: Any = "none") -> FoveatedModel:
    """Two blocks of SmolLM2-135M's shape, two fine passes, and 1,000 words."""
    torch.manual_seed(0)
    heads: Any = {"num_attention_heads": 9, "num_key_value_heads": 3}
    sizes: Any = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2}
    language = fuse_norms(LlamaModel(LlamaConfig(vocab_size=1000, **sizes, **heads)))
    if text == "none":
        language.set_input_embeddings(nn.Identity())
    encoder = DinoEncoder(stock_dino(2 + deep)) if deep or frames else None
    tail = encoder.cut(deep) if encoder else None
    model = FoveatedModel(
        language=language,
        attention=DeepAttention(tail) if tail else ShallowAttention(384, temperature=1.0),
        latent_shape=LATENT,
        fine_iterations=2,
        encoder=encoder if frames else None,
        text=text,
    )
    if frames:
        model.train_encoder()
    return model.train()


def small_batch(clips: int, *, frames: bool = False, text: str = "none") -> Batch:
    drawn = torch.Generator().manual_seed(3)
    shape = (clips, 4, 3, SIDE, SIDE) if frames else (clips, 4, 1 + (SIDE // 14) ** 2, 384)
    inputs = torch.randint(256, shape, generator=drawn, dtype=torch.uint8)
    if not frames:
        inputs = torch.randn(shape, generator=drawn).half()
    latents = torch.randn(clips, 4, *LATENT, generator=drawn).half()
    captions = None
    if text != "none":
        mask = (
            torch.arange(9)[None] < torch.tensor([(7 * n) % 9 + 1 for n in range(clips)])[:, None]
        )
        mask = mask.flip(1) if text == "condition" else mask
        captions = Captions(torch.randint(1000, mask.shape, generator=drawn) * mask, mask)
    return Batch(inputs, latents, [f"clip{n}" for n in range(clips)], captions)


def make_encoder(
    device: torch.device,
    dtype: Any,
    *,
    blocks: int,
    widths: tuple[int, ...],
    frames: int = 5,
    compile: bool = False,
) -> FrameEncoder:
    """DINOv2-S and an autoencoder of SD's architecture with these widths."""
    from diffusers import AutoencoderKL

    from benchmarks.bench_encode import SD_VAE

    torch.manual_seed(2)
    sizes = SD_VAE | {"block_out_channels": widths, "norm_num_groups": min(32, widths[0] // 2)}
    vae = AutoencoderKL(**sizes).to(memory_format=torch.channels_last)
    names = {"dino": "random", "dino_layers": 0, "vae": "random", "layer": blocks}
    values = names | {"batch_frames": frames, "dtype": dtype, "compile": compile}
    params = EncodeParams.model_validate(values)
    codec = VaeCodec(vae).eval().requires_grad_(False)
    return FrameEncoder(DinoEncoder(stock_dino(blocks)).eval(), codec, params, device)


def make_sampler(device: torch.device, batch: int, dtype: str, *, passes: int) -> Sampler:
    """Dropout behind the last three blocks of DINOv2-S."""
    tower = Tower(stock_dino(12), Preparation((0.5,) * 3, (0.2,) * 3, None, 14, "bicubic"), "")
    values = read_yaml(PARAMS)["uncertainty"]
    values |= {"dtype": dtype, "passes": passes, "snapshots": []}
    params = UncertaintyParams.model_validate(values)
    sites = tuple(site for site in tower.sites if site.endswith("mlp.fc2"))[-3:]
    return Sampler(tower.eval(), sites, params, device, batch)


class Training:
    """Training steps on one batch that stays on the device; figures are read a step late."""

    def __init__(self, model: FoveatedModel, batch: Batch, params: TrainParams) -> None:
        self.model, self.batch, self.params = model.to(DEVICE).train(), batch.to(DEVICE), params
        self.losses = Losses(self.model, params)
        self.optimizer = make_optimizer(self.model, params)
        self.unread: Step | None = None

    def step(self) -> Step:
        batches = iter([self.batch])
        return train_step(self.losses, self.optimizer, batches, self.params, step=0, late=True)

    def __call__(self) -> None:
        step = self.step()
        if self.unread:
            self.unread.read()
        self.unread = step


def compare_models() -> Found:
    """Loss and gradients of every kind of model on the GPU, also compiled, against the CPU's."""
    kinds: dict[str, Found] = {
        "features": {},
        "deep": {"deep": 1},
        "frames": {"frames": True, "deep": 1},
        "condition": {"text": "condition"},
        "caption": {"text": "caption"},
    }
    found: Found = {"cross_entropy": "torch's own" if FUSED else "plain"}
    limits = {"float32": 1e-3, "bfloat16": 0.2, "compiled": 1e-3, "recomputed": 1e-3}
    for kind, options in kinds.items():
        batch_options = {name: options[name] for name in ("frames", "text") if name in options}
        batch = small_batch(4, **batch_options)
        expected = gradients(small_model(**options), batch, "float32", CPU)
        rows: Found = {}
        for way in limits if kind in ("features", "frames") else ("float32", "bfloat16"):
            model = small_model(**options)
            compile_parts(model, "default" if way == "compiled" else "none", backend=BACKEND)
            recompute_blocks(model, "all" if way == "recomputed" else "none")
            dtype = "bfloat16" if way == "bfloat16" else "float32"
            got = gradients(model, batch, dtype, DEVICE)
            rows[way] = {"loss": abs(float(got[0] / expected[0]) - 1), "all": apart(got, expected)}
        rows["ok"] = all(rows[way]["all"] < limit for way, limit in limits.items() if way in rows)
        found[kind] = rows
    return found


def gradients(model: FoveatedModel, batch: Batch, dtype: str, device: torch.device) -> Tensor:
    """The loss and every gradient, in one vector."""
    model.to(device).zero_grad(set_to_none=True)
    params = bench.make_params(len(batch.keys), dtype=dtype)
    loss = batch_losses(model, batch.to(device), params)["loss"]
    loss.backward()
    found = [value.grad.flatten() for value in model.parameters() if value.grad is not None]
    return torch.cat([loss.detach()[None], *found]).cpu()


def compare_inference() -> Found:
    """Frame by frame, against the CPU; after T - 1 fine passes there is no gap."""
    model, batch = small_model().eval(), small_batch(3)
    model.fine_iterations = 3
    states = {}
    with torch.inference_mode():
        for device in (CPU, DEVICE):
            cache = model.to(device).cache_clips(batch.inputs.to(device))
            states[device.type] = run_autoregressive(model, cache, 3, 4).predictor
            gap = apart(states[device.type], model.run_passes(cache, 3, 4)[-1].predictor)
    different = apart(states[DEVICE.type], states["cpu"])
    return {"different": different, "gap": gap, "ok": max(different, gap) < 1e-3}


def compare_training() -> Found:
    """Pinned memory, figures read late; stopped and resumed; a step that is not finite."""
    found: Found = {}
    steps, size = (12, 8) if CUDA else (8, 2)
    for dtype in ("float32", "bfloat16"):
        changes = {"dtype": dtype, "num_frames": 4, "lr": 1e-3, "token_noise": 0.1}
        params = bench.make_params(size, max_samples=size * steps, **changes)
        with tempfile.TemporaryDirectory() as folder:
            run = [run_training(params, Path(folder) / name, stop) for name, stop in
                   (("whole", 0), ("again", 0), ("parts", steps // 2), ("parts", 0))]  # fmt: skip
        whole, again, _, resumed = run
        found[dtype] = {
            "twice": max(apart(again[0][name], value) for name, value in whole[0].items()),
            "resumed": max(apart(resumed[0][name], value) for name, value in whole[0].items()),
            "losses": [whole[1][0], whole[1][-1]],
            "losses_resumed": apart(resumed[1], whole[1]),
        }
        found[dtype]["ok"] = found[dtype]["losses_resumed"] < 1e-3
    found["not_finite"] = skipped_update()
    return found


def run_training(
    params: TrainParams, folder: Path, stop: int
) -> tuple[dict[str, Tensor], list[float]]:
    """Final weights and all losses; with `stop` it is asked to end after that many steps."""
    corpus, model, memory = small_batch(32), small_model(), BatchMemory(2, pinned=CUDA)

    def load(positions: range) -> Batch:
        """Into memory that the batch before the last was read into, as the stage does."""
        memory.turn()
        rows, found = [position % 32 for position in positions], []
        for name, values in (("inputs", corpus.inputs), ("latents", corpus.latents)):
            array = memory.array(name, (len(rows), *values.shape[1:]), "float16")
            np.copyto(array, values[rows].numpy())
            found.append(torch.from_numpy(array))
        return Batch(found[0], found[1], [str(row) for row in rows])

    def on_step(row: dict[str, float]) -> None:
        if row["step"] + 1 == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    checkpoints = Checkpoints(folder, {"params": params.model_dump()}, "check")
    losses: list[float] = []
    try:
        state = train(
            model, load, params, checkpoints=checkpoints, device=DEVICE, on_step=on_step, late=True
        )
        losses = [row["loss"] for row in state.history]
    except OutOfTimeError:
        assert stop
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}, losses


def skipped_update() -> Found:
    """Late, an update with infinite gradients must leave weights and moments alone."""
    training = Training(small_model(), small_batch(2), bench.make_params(2, dtype="float32"))
    training()
    before = [value.detach().clone() for value in training.model.parameters()]
    training.batch.inputs[0, 0, 0, 0] = float("nan")
    training.step()
    same = all(map(torch.equal, before, training.model.parameters()))
    return {"ok": same}


def compare_encoders() -> Found:
    """Tokens and latents, float16 as they are stored, against the CPU's in float32."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 6, 3, 112, 112), np.uint8)
    made: Found = {}
    for device, dtype in ((CPU, "float32"), (DEVICE, "float32"), (DEVICE, "bfloat16")):
        encoder = make_encoder(device, dtype, blocks=3, widths=(16, 32, 32, 32))
        made[f"{device.type} {dtype}"] = encoder.encode(frames)
    expected, limits = made["cpu float32"], {"float32": 2e-3, "bfloat16": 3e-2}
    found: Found = {
        way: [apart(*pair) for pair in zip(values, expected, strict=True)]
        for way, values in made.items()
    }
    found["ok"] = all(max(values) < limits[way.split()[1]] for way, values in found.items())
    return found


def compare_uncertainty() -> Found:
    """Masks bit for bit, scores to their rounding, however many passes share a forward."""
    rows = [Row(1, number, f"clip{number}") for number in range(4)]
    ones, kept = torch.ones(4, 65, 384), kept_levels(0.1)
    masks = [drop(ones.to(d, copy=True), row_keys(0, rows, d), "a.b", kept) for d in (CPU, DEVICE)]
    found: Found = {"masks_equal": torch.equal(masks[0], masks[1].cpu())}
    frames = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    ways = ((CPU, 16, "float32"), (DEVICE, 16, "float32"), (DEVICE, 64, "float32"))
    scores = [
        make_sampler(device, size, dtype, passes=8).scores(frames, ["a", "b"], trials=2)
        for device, size, dtype in (*ways, (DEVICE, 16, "bfloat16"))
    ]
    found["scores"] = [apart(value, scores[0]) for value in scores[1:]]
    return found | {"ok": found["masks_equal"] and max(found["scores"][:2]) < 1e-3}


def compare_processes() -> Found:
    """DDP and FSDP2 with the one process there is, as the product wraps its model."""
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    os.environ |= settings | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    distributed.init_process_group("nccl" if CUDA else "gloo", rank=0, world_size=1)
    losses: dict[str, list[float]] = {}
    try:
        for dtype in ("float32", "bfloat16"):
            params = bench.make_params(2, dtype=dtype)
            ways: tuple[Any, ...] = ("alone", "ddp", "fsdp")
            for way in ways:
                model, batch = small_model(), small_batch(2).to(DEVICE)
                module: nn.Module = Losses(model, params).to(DEVICE)
                if way != "alone":
                    module = distribute(Losses(model, params), model, way, params.dtype, DEVICE)
                optimizer = make_optimizer(model, params)
                losses[f"{way} {dtype}"] = [
                    train_step(module, optimizer, iter([batch]), params, step=n).read()[0]["loss"]
                    for n in range(3)
                ]
    finally:
        distributed.destroy_process_group()
    found: Found = {
        name: apart(values, losses[f"alone {name.split()[1]}"]) for name, values in losses.items()
    }
    return found | {"ok": max(found.values()) < 1e-2 and found["ddp float32"] < 1e-5}
