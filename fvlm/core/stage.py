"""How every stage starts and ends: --help; a message and an exit code instead of a traceback."""

import argparse
import sys
from collections.abc import Callable
from inspect import signature

from fvlm.core.errors import FvlmError
from fvlm.core.io import NO_ROOM

UNFINISHED = 75  # sysexits.h EX_TEMPFAIL: DVC keeps the stage unfinished, the next run continues


def run(main: Callable[[], None]) -> None:
    """Run a stage; an FvlmError is printed alone, and a full disk with the file that did not fit.

    A `main` that takes arguments reads the command line itself; for any other only --help is known.
    A stage that is out of time exits by itself, with UNFINISHED.
    """
    if main.__module__ == "__main__" and not signature(main).parameters:
        command_line(sys.modules["__main__"].__doc__).parse_args()
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


def command_line(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows --help and no arguments; unknown ones end the process with 2."""
    spec = sys.modules["__main__"].__spec__
    return argparse.ArgumentParser(
        prog=f"python -m {spec.name}" if spec else None,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
