"""Where and in which type tensors are computed."""

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator

from fvlm.core.errors import ParamsError
from fvlm.core.machine import reset_resident, resident_gib


def _resolved(value: object) -> object:
    """Kept work is named after its parameters, and `auto` would name different types."""
    if value == "auto":
        raise ValueError(
            "auto stands in presets only, which are applied as what it means on this machine: "
            f"write {auto_dtype()}"
        )
    return value


Dtype = Annotated[Literal["float32", "bfloat16"], BeforeValidator(_resolved)]
HalfDtype = Annotated[Literal["float32", "bfloat16", "float16"], BeforeValidator(_resolved)]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h


def default_device() -> torch.device:
    """The GPU when there is one (CUDA or Apple's MPS), else the CPU; its arithmetic is set.

    $FVLM_DEVICE chooses another one. Raises ParamsError when it is not at hand.
    """
    set_arithmetic()
    at_hand = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    wanted = os.environ.get("FVLM_DEVICE") or next(name for name, here in at_hand.items() if here)
    if not at_hand.get(wanted):
        here = ", ".join(name for name, is_here in at_hand.items() if is_here)
        raise ParamsError(f"FVLM_DEVICE is {wanted!r}, must be one of those that are here: {here}")
    return torch.device(wanted)


def set_arithmetic() -> None:
    """float32 means float32, also on a GPU: torch's own choice is TF32 for convolutions.

    No search for the fastest convolution (cudnn.benchmark): what it finds differs from run to run,
    and with it the bits of a resumed training.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def auto_dtype() -> Literal["float32", "bfloat16"]:
    """What `auto` means here: bfloat16 where the device multiplies matrices in it, else float32."""
    kind = default_device().type
    if kind == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = kind == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def autocast(device: torch.device, dtype: HalfDtype) -> AbstractContextManager[object]:
    """Compute matrix products in the type; weights, normalisations and losses stay float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


def arithmetic(device: torch.device, dtype: HalfDtype) -> str:
    """In words: for metrics, since figures of two devices or types differ in their last digits."""
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{dtype} products on {place}, no TF32, sums and norms in float32"


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type of matrix products of values of `dtype` here: autocast's, where it is on."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype


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


def reset_peak_memory(device: torch.device) -> None:
    """From now on the peak is that of what follows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_resident()


def reserved_memory_gib(device: torch.device) -> float | None:
    """Largest memory that torch held of the GPU, in use or not; None where there is no GPU."""
    return torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory in use so far: of the GPU, or else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resident_gib()
