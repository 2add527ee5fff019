"""Turns warnings into errors, or ignores them, in one thread only.

`warnings.catch_warnings` swaps the filters of the whole process: the warnings of other threads become errors, too, and
two threads that leave their blocks in another order than they entered them leave the wrong filters behind for ever.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal


class _OneThread:
    """The module pattern of a filter: matches any module, but only in the thread that made it, until it is closed."""

    def __init__(self) -> None:
        self._thread: int | None = threading.get_ident()

    def match(self, module: str) -> bool:
        """Called by `warnings` with the name of the module that warns, in the thread that warns."""
        return threading.get_ident() == self._thread

    def close(self) -> None:
        """Makes the pattern match nothing."""
        self._thread = None


@contextmanager
def thread_warnings(action: Literal["error", "ignore"]) -> Iterator[None]:
    """Applies `action` to every warning of this thread while the block runs; other threads notice nothing."""
    pattern = _OneThread()
    entry: Any = (action, None, Warning, pattern, 0)
    filters: Any = warnings.filters
    filters.insert(0, entry)
    _forget_shown_warnings()
    try:
        yield
    finally:
        # A `catch_warnings` of another thread may have copied the list meanwhile, and may bring the old one back.
        pattern.close()
        current: Any = warnings.filters
        for each in (filters, current):
            with suppress(ValueError):
                each.remove(entry)
        _forget_shown_warnings()


def _forget_shown_warnings() -> None:
    """Makes Python consult the filters again for warnings that it has shown before."""
    # The public functions that do so, such as `simplefilter`, add a filter of their own.
    warnings._filters_mutated()  # type: ignore[attr-defined]
