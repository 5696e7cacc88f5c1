"""How every stage starts and ends: --help; a message and an exit code instead of a traceback."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from fvlm.core.errors import FvlmError
from fvlm.core.io import NO_ROOM

started_in = Path()  # the folder that paths of the command line are meant from
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
UNFINISHED = 75  # sysexits.h EX_TEMPFAIL: DVC keeps the stage unfinished, the next run continues


def run(main: Callable[[], None], *, batch_key: str = "") -> None:
    """Run a stage; of its command line only --help is known.

    One that is out of time exits by itself, with UNFINISHED. batch_key: the parameter to lower
    where a GPU's memory is too small.
    """
    if main.__module__ == "__main__":
        module = sys.modules["__main__"]
        name = module.__spec__.name if module.__spec__ else "stage"
        new_parser(module.__doc__, f"python -m {name}").parse_args()
    tell_faults(main, batch_key=batch_key)


def tell_faults(work: Callable[[], None], *, batch_key: str = "") -> None:
    """End with a message and no traceback where the user can mend it, or asked for it."""
    try:
        work()
    except FvlmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: no room: {error}; make room and run again", file=sys.stderr)
        sys.exit(1)
    except RuntimeError as error:
        # torch's own, without importing torch here
        if type(error).__name__ != "OutOfMemoryError" or not batch_key:
            raise
        said = str(error).partition(". ")[0]
        print(f"error: {said}: lower {batch_key} in params.yaml", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


def new_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser that knows --help and no arguments; unknown ones end the process with 2."""
    return argparse.ArgumentParser(
        prog=name,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def given_path(text: str) -> Path:
    """A path of the command line."""
    return started_in / text
