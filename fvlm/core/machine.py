"""How much of the machine this process may use, and uses."""

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path


def core_count() -> int:
    """Processor cores that this process may run on; all of them where the system sets no limit."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_gib() -> float:
    """An upper bound of resident memory so far: this process, and a child for each core.

    All children count as the largest one that has ended.
    """
    own, largest = map(resident_gib, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own + largest * core_count()


def resident_gib(who: int = resource.RUSAGE_SELF) -> float:
    """Largest resident memory so far of this process, or of its largest child (RUSAGE_CHILDREN)."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(who).ru_maxrss * unit / 2**30


def reset_resident() -> None:
    """From now on `resident_gib` of this process is that of what follows, where Linux allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
