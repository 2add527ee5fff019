"""Many reads at a time, in threads: storage takes longer to answer than to send."""

import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    pool: ThreadPoolExecutor,
    read: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    in_order: bool,
    max_pending: int | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Yields (item, read(item)) for each item, and raises what `read` raises. `read` runs in the threads of `pool`.

    in_order: yields in the order of the items, else as the results arrive. max_pending: reads that are asked for and
    not yielded yet, which bounds the memory; None asks for all at once. Reads that haven't begun are cancelled when
    the caller stops early.
    """
    todo = iter(items)
    pending: dict[Future[Result], Item] = {}  # in the order of the items
    arrived: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()

    def ask(count: int | None) -> None:
        for item in islice(todo, count):
            future = pool.submit(read, item)
            pending[future] = item
            if not in_order:
                future.add_done_callback(arrived.put)

    try:
        ask(max_pending)
        while pending:
            future = next(iter(pending)) if in_order else arrived.get()
            result = future.result()
            item = pending.pop(future)
            ask(1)
            yield item, result
    finally:
        for future in pending:
            future.cancel()
