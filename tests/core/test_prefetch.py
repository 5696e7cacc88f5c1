"""Work ahead gives what plain work gives, holds little at a time, and hides no error."""

import threading
from collections.abc import Iterator

import pytest

from fvlm.core.prefetch import Ahead

WORKERS = [1, 2, 5]


def running() -> int:
    return sum(thread.name.startswith("ahead") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("count", [0, 1, 40])
def test_results_come_in_order_whoever_is_first(workers: int, count: int) -> None:
    later = [threading.Event() for _ in range(count + 1)]

    def after_the_next(number: int) -> int:
        """Ends only after its neighbour in the next thread has begun, where there is one."""
        later[number].set()
        if workers > 1 and number % 2 == 0 and number + 1 < count:
            later[number + 1].wait(timeout=10)
        return number * number

    with Ahead(workers=workers) as ahead:
        assert list(ahead.map(after_the_next, range(count))) == [n * n for n in range(count)]
    assert running() == 0


@pytest.mark.parametrize("workers", WORKERS)
def test_a_slow_taker_bounds_the_work(workers: int) -> None:
    lock, begun, largest = threading.Lock(), 0, 0

    def work(number: int) -> int:
        nonlocal begun
        with lock:
            begun += 1
        return number

    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    with Ahead(workers=workers) as ahead:
        for taken, number in enumerate(ahead.map(work, endless())):
            assert number == taken
            with lock:
                largest = max(largest, begun - taken)
            if taken == 200:
                break
    assert 1 <= largest <= 2 * workers
    assert begun <= 201 + 2 * workers


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_takes_the_place_of_its_result(workers: int) -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 7:
            raise ValueError("item 7 is bad")
        return number

    taken: list[int] = []
    with Ahead(workers=workers) as ahead, pytest.raises(ValueError, match="item 7 is bad"):
        taken.extend(ahead.map(work, range(1000)))
    assert taken == list(range(7))
    assert max(begun) < 7 + 2 * workers
    assert running() == 0


def test_an_error_of_the_items_comes_up_too() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("no more items")

    with Ahead(workers=2) as ahead, pytest.raises(OSError, match="no more items"):
        list(ahead.map(abs, items()))


def test_an_error_of_the_taker_ends_the_threads() -> None:
    begun: list[int] = []

    def take() -> None:
        with Ahead(workers=2) as ahead:
            for _ in ahead.map(begun.append, range(1000)):
                raise RuntimeError("taker")

    with pytest.raises(RuntimeError, match="taker"):
        take()
    assert len(begun) <= 4
    assert running() == 0
