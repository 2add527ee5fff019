"""Values for JSON, which has no NaN and no infinity."""

import math
from typing import Any


def finite_or_none(value: Any) -> Any:
    """Returns the value with None for every float that isn't finite, inside lists, tuples and dictionaries, too.

    Tuples become lists, as they are when JSON is read back.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite_or_none(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(each) for each in value]
    return value
