"""Set environment variables for a block."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment_variables(
    values: Mapping[str, str], keep: bool = False, also_restored: tuple[str, ...] = ()
) -> Iterator[None]:
    """Sets environment variables of this process for the block, and restores them.

    keep: a variable that is set already keeps its value. also_restored: names of variables that the block may set.
    Threads share the environment: they see the values, too.
    """
    before = {name: os.environ.get(name) for name in (*values, *also_restored)}
    os.environ.update({name: value for name, value in values.items() if not (keep and before[name] is not None)})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
