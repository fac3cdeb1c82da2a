"""Work on many threads whose results come in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
AHEAD = 4
"""Items in flight per thread: enough to keep them busy, few enough for memory."""


def ordered_map(work: Callable[[In], Out], items: Iterable[In], threads: int) -> Generator[Out]:
    """Like `map`, on several threads and with a bounded number of items in flight."""
    if threads <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Out]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
