"""Prepare the next items in threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_NUM_AHEAD = 2  # items per worker: enough that none waits, and few enough for the memory


def ahead(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, num_workers: int
) -> Iterator[tuple[_Item, _Result]]:
    """Yield every item with `work(item)`, in order, worked out before it is asked for.

    As long as `work` depends on its item alone, the number of workers changes nothing but the
    time; 0 works when asked. What `work` raises is raised where its item would have come.
    """
    if num_workers == 0:
        for item in items:
            yield item, work(item)
        return
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="optbench-ahead")
    try:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > _NUM_AHEAD * num_workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
