"""Which layers drop: names or patterns from the parameters against the layers that exist."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from fvlm.core.errors import ParamsError


def match_sites(patterns: Sequence[str], known: Sequence[str], *, key: str) -> tuple[str, ...]:
    """The layers of `known` (in that order) that the patterns of `key` name; `*` is anything.

    Raises ParamsError for a pattern that fits no layer, with the nearest names, and for a layer
    that two patterns name: it would drop twice.
    """
    chosen: dict[str, str] = {}
    for pattern in patterns:
        found = [name for name in known if fnmatchcase(name, pattern)]
        if not found:
            nearest = difflib.get_close_matches(pattern, known, n=3, cutoff=0)
            raise ParamsError(
                f"{key}: {pattern!r} fits no linear layer of the tower; nearest: "
                f"{', '.join(nearest)}"
            )
        for name in found:
            if name in chosen:
                raise ParamsError(
                    f"{key}: {name} is named twice, by {chosen[name]!r} and {pattern!r}"
                )
            chosen[name] = pattern
    return tuple(name for name in known if name in chosen)
