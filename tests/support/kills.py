"""Calls that end in the middle, as a process that is killed does."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.core.errors import StorageError
from pipeline.storage import files

_WRITES = ("write_once", "replace", "write_bytes", "delete_files")


def killed_at_write(n: int, call: Callable[[], Any]) -> bool:
    """Calls a function that is stopped before its n-th write or removal of files; returns whether there was one."""
    numbers = itertools.count(1)

    def stopping(write: Callable[..., Any]) -> Callable[..., Any]:
        def stop_or_write(*arguments: Any, **options: Any) -> Any:
            if next(numbers) == n:
                raise StorageError("killed")
            return write(*arguments, **options)

        return stop_or_write

    with pytest.MonkeyPatch.context() as patch:
        for name in _WRITES:
            patch.setattr(files, name, stopping(getattr(files, name)))
        try:
            call()
        except StorageError:
            return True
    return False
