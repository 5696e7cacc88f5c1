"""How every stage ends: a message and an exit code instead of a traceback."""

import sys
from collections.abc import Callable

from fvlm.errors import FvlmError
from fvlm.io import NO_ROOM

UNFINISHED = 75  # sysexits.h EX_TEMPFAIL: DVC keeps the stage unfinished, the next run continues


def run(main: Callable[[], None]) -> None:
    """Run a stage; an FvlmError is printed alone, and a full disk with the file that did not fit.

    A stage that is out of time exits by itself, with UNFINISHED.
    """
    try:
        main()
    except FvlmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: no room: {error}; make room and run again", file=sys.stderr)
        sys.exit(1)
