"""Randomness as a pure function of (seed, purpose, position): independent of history and workers.

Source: counter-based generators, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011); numpy's Philox.
"""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """A Philox generator for this seed, purpose and position (for example an epoch)."""
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose, *position)))


def torch_seed(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed for `torch.manual_seed`."""
    return _key(seed, purpose, *position) % 2**63


def unit_hash(text: str, purpose: str) -> float:
    """A number in [0, 1) that depends on `text` and `purpose` only (for example a split)."""
    digest = hashlib.sha256(f"{purpose}\0{text}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _key(seed: int, purpose: str, *position: int) -> int:
    text = ":".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
