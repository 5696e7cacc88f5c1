"""Where and in which type tensors are computed."""

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Dtype = Literal["float32", "bfloat16"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


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


def keep_freed_memory() -> None:
    """From now on malloc keeps what this process frees, for the next operation's output.

    glibc would hand large blocks back to the kernel, which then has to clear them page by page: on
    a CPU 13% of the time of a training step, 4% of encoding (benchmarks/bench_memory.py). Without
    glibc nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**26)  # the size of a thread's heap: one that is empty stays


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory in use so far: of the GPU, or else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
