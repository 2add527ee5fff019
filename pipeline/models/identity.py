"""The identity of a run or a search: the settings that must be equal to continue it."""

from collections.abc import Iterator
from typing import Any

from pipeline.core.errors import CheckpointError

# How a run is carried out, and no part of its identity: the flag --compile. A recipe still holds it, because the files
# of earlier runs do.
_NOT_COMPARED = ("recipe.compile",)


def differences(recorded: dict[str, Any], current: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yields "FIELD was X, now Y" for each value that differs between two nested dictionaries.

    path: prefix of the field names, for the recursion.
    """
    for key in sorted({*recorded, *current}):
        old, new = recorded.get(key), current.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{path}{key}.")
        elif old != new and f"{path}{key}" not in _NOT_COMPARED:
            yield f"{path}{key} was {old}, now {new}"


def check_identity(
    uri: str, recorded: dict[str, Any], current: dict[str, Any], flags: str = "--run-dir or --run-name"
) -> None:
    """Raises CheckpointError, which lists the differences, unless two identities are equal.

    uri: the run or checkpoint with the `recorded` identity. flags: the flags that choose `uri`, for the message.
    """
    different = list(differences(recorded, current))
    if different:
        raise CheckpointError(
            f"{uri}: holds another run ({'; '.join(different[:4])}); give another {flags}, "
            "or the same settings to continue it"
        )
