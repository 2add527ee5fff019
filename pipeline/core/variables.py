"""Environment variables that are set for a while."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment_variables(values: Mapping[str, str], keep: bool = False) -> Iterator[None]:
    """Sets environment variables of this process, and puts them back as they were at the end.

    keep: a variable that is set already keeps its value. Threads share the environment: they see the values, too.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if not (keep and before[name] is not None)})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
