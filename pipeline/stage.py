"""How every stage ends: a message and an exit code instead of a traceback."""

import sys
from collections.abc import Callable

from fvlm.errors import FvlmError

UNFINISHED = 75  # sysexits.h EX_TEMPFAIL: DVC keeps the stage unfinished, the next run continues


class UnfinishedError(FvlmError):
    """The stage saved its state and wants to be run again."""


def run(main: Callable[[], None]) -> None:
    """Run a stage; an FvlmError is printed alone, and a stage that is out of time exits with 75."""
    try:
        main()
    except UnfinishedError as error:
        print(f"unfinished: {error}", file=sys.stderr)
        sys.exit(UNFINISHED)
    except FvlmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
