"""Progress of long work: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

LINE_SECONDS = 10.0  # a log gets one line in this time at most


class Progress:
    """Counts done units and shows rate, time left and notes such as errors by reason.

    On a terminal this is a tqdm bar; elsewhere one plain line every 10 seconds and one at the end,
    so that a log stays readable. A `silent` one says nothing: of several processes one reports.

        with Progress("filter", total=100, unit="video") as progress:
            progress.advance(too_short=3)
    """

    def __init__(
        self,
        title: str,
        *,
        total: int,
        unit: str,
        initial: int = 0,
        silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._initial = self._done = initial
        self._silent = silent
        self._printed: tuple[int, dict[str, object]] | None = None
        self._notes: dict[str, object] = {}
        self._clock = clock
        self._start = self._last = clock()
        self._bar = (
            tqdm(total=total, desc=title, unit=unit, initial=initial, dynamic_ncols=True)
            if sys.stderr.isatty() and not silent
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def advance(self, amount: int = 1, **notes: object) -> None:
        """Count `amount` more units as done and replace the given notes."""
        self._done += amount
        self._notes |= notes
        if self._bar is not None:
            self._bar.set_postfix(self._notes, refresh=False)
            self._bar.update(amount)
        elif self._clock() - self._last >= LINE_SECONDS:
            self._print_line()

    def skip(self, amount: int, **notes: object) -> None:
        """Count `amount` units that took no time, such as reused ones: they are no speed."""
        self._initial += amount
        if self._bar is not None:
            self._bar.initial += amount
        self.advance(amount, **notes)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._printed != (self._done, self._notes):
            self._print_line()

    def _print_line(self) -> None:
        if self._silent:
            return
        self._last, self._printed = self._clock(), (self._done, dict(self._notes))
        seconds = max(self._last - self._start, 1e-9)
        rate = (self._done - self._initial) / seconds
        left = (self._total - self._done) / rate if rate > 0 else float("inf")
        eta = "" if self._done >= self._total or rate == 0 else f", {left:.0f} s left"
        notes = "".join(f", {name.replace('_', ' ')} {note}" for name, note in self._notes.items())
        print(
            f"{self._title}: {self._done}/{self._total} {self._unit}s, "
            f"{rate:.2f} {self._unit}s/s{eta}{notes}",
            file=sys.stderr,
            flush=True,
        )
