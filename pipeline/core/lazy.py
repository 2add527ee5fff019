"""Import the names of a package on first use, so that `import pipeline` stays cheap (PEP 562)."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, names: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package.

    package: its `__name__`. names: {module, relative to the package: names to import from it}. The returned function
    raises AttributeError for any other name.
    """
    modules = {name: f"{package}.{module}" for module, found in names.items() for name in found}

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # Not kept in the package: a test that replaces a name in its module must be seen here, too.
        return getattr(importlib.import_module(modules[name]), name)

    return load
