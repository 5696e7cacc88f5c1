"""Where and in which type tensors are computed."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Dtype = Literal["float32", "bfloat16"]


def default_device() -> torch.device:
    """The GPU when there is one (CUDA or Apple's MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def autocast(device: torch.device, dtype: Dtype) -> AbstractContextManager[object]:
    """Compute matrix products in bfloat16; weights, normalisations and losses stay float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory in use so far: of the GPU, or else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
