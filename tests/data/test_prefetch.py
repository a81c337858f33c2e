"""Work done ahead comes in order, as many items ahead as promised, and fails in its place."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from optbench.data.prefetch import ahead


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_items_come_in_order_with_what_was_worked_out(num_workers: int) -> None:
    found = list(ahead(lambda item: item * item, range(20), num_workers=num_workers))
    assert found == [(item, item * item) for item in range(20)]


def test_workers_are_at_work_before_they_are_asked() -> None:
    both = threading.Barrier(2)  # passes only when two items are worked on at once

    def work(item: int) -> int:
        both.wait(timeout=60)
        return item

    assert [item for item, _ in ahead(work, range(4), num_workers=2)] == [0, 1, 2, 3]


def test_only_so_many_items_are_taken_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    stream = ahead(str, items(), num_workers=2)
    assert next(stream) == (0, "0")
    assert len(taken) == 5
    stream.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("optbench-ahead")]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_comes_in_its_items_place(num_workers: int) -> None:
    stream = ahead(lambda item: 1 // (2 - item), range(5), num_workers=num_workers)
    assert [next(stream), next(stream)] == [(0, 0), (1, 1)]
    with pytest.raises(ZeroDivisionError):
        next(stream)
