"""The files of a registry's alias: its newest move with the fencing token, and its history (see `registry.py`)."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import msgspec

from pipeline.storage import files

_RESTORE = "restore it from a copy of the registry"
_MARK = re.compile(r"\((night|review|return|dropped|outdated) ([0-9a-f]{12})\)$")


@dataclass(frozen=True)
class Move:
    """One move of an alias, the content of `history/NAME/N.json`."""

    alias: str
    number: Annotated[int, msgspec.Meta(ge=1)]  # counts from 1
    version: str  # ID of the version that the alias names from here on
    before: int  # number of the move that a rollback goes back to; 0 for none
    reason: str
    time: Annotated[float, msgspec.Meta(ge=0, le=1e11)]  # seconds since the epoch
    against: int = 0  # of a candidate: number of the champion's move that it was compared with; 0 for every other

    def as_json(self) -> dict[str, Any]:
        """Returns the move as JSON values. A field that earlier versions didn't have is left out at its default."""
        values = asdict(self)
        if not self.against:
            del values["against"]
        return values

    @property
    def mark(self) -> tuple[str, str]:
        """What a program wrote at the end of the reason: (kind, ID); ("", "") for a move that a person made.

        Kinds: "night", a retraining run's; "review", "return", "dropped" and "outdated", a review's (`live/review.py`).
        """
        return mark_of(self.reason)


def mark_of(reason: str) -> tuple[str, str]:
    """Returns the mark of a move with this reason, as `Move.mark`."""
    found = _MARK.search(reason)
    return (found[1], found[2]) if found else ("", "")


@dataclass(frozen=True)
class AliasState:
    """The content of `aliases/NAME.json`."""

    move: Move | None  # the newest; None if the alias was never set
    fence: int  # the newest fencing token; 0 if none was ever taken
    file_version: str  # of the file that this was read from, for a conditional write; "" if there was none


class _AliasFile(msgspec.Struct):
    move: Move | None
    fence: Annotated[int, msgspec.Meta(ge=0)]


def read_alias(registry: str, alias: str) -> AliasState:
    """Returns the state of an alias. A name that can't be an alias is one that was never set."""
    found = files.read_version(_alias_uri(registry, alias)) if alias.replace("-", "").isalnum() else None
    if found is None:
        return AliasState(None, 0, "")
    place, moves = _alias_uri(registry, alias), files.join(registry, "history", alias)
    content = files.parse_record(found[0], place, _AliasFile, f"restore it: its move is the newest one in {moves}")
    return AliasState(content.move, content.fence, found[1])


def write_alias(registry: str, alias: str, state: AliasState) -> bool:
    """Writes the state if the file still has its `file_version`, and returns whether it was written."""
    place = _alias_uri(registry, alias)
    data = encode({"move": state.move and state.move.as_json(), "fence": state.fence})
    if not state.file_version:
        return files.write_once(place, data)
    return files.replace(place, data, state.file_version) is not None


def alias_names(registry: str) -> list[str]:
    """Returns the sorted names of all aliases that have a file, set or not."""
    names = [name for name, _ in files.list_files(files.join(registry, "aliases"))]
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def write_history(registry: str, move: Move) -> None:
    """Writes the history file of a move, unless it is there."""
    files.write_once(files.join(registry, "history", move.alias, f"{move.number:06d}.json"), encode(move.as_json()))


def read_history(registry: str, alias: str) -> list[Move]:
    """Returns the moves that have a history file, oldest first."""
    return list(read_backwards(registry, alias))[::-1]


def read_backwards(registry: str, alias: str) -> Iterator[Move]:
    """Yields the moves that have a history file, newest first. Each file is read when its move is asked for."""
    folder = files.join(registry, "history", alias)
    # Another process may write one now: a local folder then holds it under a passing name, too.
    names = sorted(name for name, _ in files.list_files(folder) if name.endswith(".json"))
    return (files.read_record(files.join(folder, name), Move, _RESTORE) for name in reversed(names))


def encode(value: object) -> bytes:
    """Returns the JSON text of a registry's files."""
    return json.dumps(value, indent=1).encode() + b"\n"


def _alias_uri(registry: str, alias: str) -> str:
    return files.join(registry, "aliases", f"{alias}.json")
