"""One training shared by several processes: `torchrun --nproc-per-node N -m pipeline.train`.

Every process computes its share of each batch. Gradients and logged losses are means over all of
them, so that N processes train as one does, to the rounding of sums. Without torchrun there is one
process, and nothing here communicates.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from fvlm.core.device import Dtype, default_device
from fvlm.core.errors import ParamsError, TrainingError
from fvlm.model.foveated import FoveatedModel
from fvlm.shards.read import verify_shards

Parallel = Literal["ddp", "fsdp"]
PATIENCE = timedelta(minutes=30)  # for a process that is late, for example saving a checkpoint
# Groups outlive what used them. DDP would end the last one's threads while it holds Python's lock,
# for which such a thread may be waiting: after an error the process would hang for ever.
_groups: list[distributed.ProcessGroup | None] = []


@contextmanager
def join_processes() -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; gives the device of this one.

    NCCL between GPUs, one for each process; gloo between CPUs.
    """
    device = default_device()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    _groups.append(distributed.group.WORLD)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def count() -> int:
    """How many processes share this training."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Is this the one process that reads checkpoints, and writes anything at all?"""
    return rank() == 0


def verify_together(folders: list[Path]) -> None:
    """The processes of a machine divide the shards: each byte is read once before it is used."""
    parts = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if parts > 1:
        for folder in folders:
            verify_shards(folder, part=int(os.environ["LOCAL_RANK"]), parts=parts)
        wait_for_all()


def share_of(positions: range) -> range:
    """This process's equal part of a batch; together the parts are the batch, in its order.

    Raises ParamsError when the batch cannot be divided equally: means over unequal parts would
    weigh their clips differently.
    """
    size, rest = divmod(len(positions), count())
    if rest:
        raise ParamsError(
            f"train.batch_size ({len(positions)}) must be a multiple of the {count()} processes "
            "that share it"
        )
    return positions[rank() * size : (rank() + 1) * size]


def distribute(
    module: nn.Module,
    model: FoveatedModel,
    parallel: Parallel,
    dtype: Dtype,
    device: torch.device,
) -> nn.Module:
    """`module`, whose forward uses `model`, on the device; gradients are means over all processes.

    ddp: every process holds all of the model. fsdp: every process holds a part of every weight,
    gradient and moment; blocks of the language model and of the encoder are gathered one by one,
    when they are used, and reach the device in parts only: no device ever holds all of the model.
    With bfloat16 they are gathered in it, which halves what is sent; gradients are summed, and
    weights kept, in float32.
    The model keeps its own names of parameters, so that checkpoints do not tell the difference.
    """
    if not distributed.is_initialized():
        return module.to(device)
    if parallel == "ddp":
        return DistributedDataParallel(module.to(device), gradient_as_bucket_view=True)
    mesh = init_device_mesh(device.type, (count(),))
    encoder = model.encoder.layers if model.encoder else ()
    # The blocks' inputs stay float32, as autocast has them.
    gathered = torch.bfloat16 if dtype == "bfloat16" else None
    policy = MixedPrecisionPolicy(gathered, torch.float32, cast_forward_inputs=False)
    for block in (*model.language.layers, *encoder):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh)
    return module


def without_exchange(module: nn.Module) -> AbstractContextManager[object]:
    """For all forwards of a step but the last: one exchange of gradients a step is enough.

    Under fsdp they are exchanged each time: whole gradients are what does not fit.
    """
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean over all processes of each value [n]."""
    if count() > 1:
        distributed.all_reduce(values)
        values /= count()
    return values


def wait_for_all() -> None:
    """Until every process has come here."""
    if count() > 1:
        distributed.barrier()


def check_same(name: str, digest: str) -> None:
    """All processes must train the same thing; `digest` is a hex hash of it.

    Raises TrainingError where it differs from that of process 0, for example on another machine.
    """
    number = torch.tensor(int(digest[:15], 16))
    if int(from_main(number, like=number)) != int(digest[:15], 16):
        raise TrainingError(f"process {rank()} has other {name} than process 0; bring them in line")


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All of tensors that may be held in parts: on the CPU of process 0, none in the others.

    Every process has to call this. One tensor at a time is put together.
    """
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if is_main():
            found[name] = full.detach().cpu().contiguous()
    return found


def from_main(value: Tensor | None, *, like: Tensor) -> Tensor:
    """Process 0's `value`, on the device of `like` and, where that is held in parts, in parts too.

    `value` has the shape and type of all of `like`; the other processes have none.
    """
    if value is None:
        value = torch.empty(like.shape, dtype=like.dtype)
    if count() > 1:
        gpu = distributed.get_backend() == "nccl"
        value = value.to("cuda" if gpu else "cpu", copy=True)
        distributed.broadcast(value, 0)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value.to(like.device)
