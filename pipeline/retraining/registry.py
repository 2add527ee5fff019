"""A model registry in a folder or a bucket: immutable versions, and aliases that name the live one.

Below the registry's URI:

    versions/ID/         weights, recipe, metrics with their certificate, predictions and, written last, `version.json`
    aliases/NAME.json    the newest move of an alias such as champion, and its fencing token
    history/NAME/N.json  every move, N counting from 1
    live/                what the models did in use, and the decisions that followed from it (`live/store.py`)

A version's ID is a hash of its content. So it never changes, and adding the same model again, also after a kill, adds
it once. The alias file holds the whole newest move and is only written conditionally (compare-and-swap); the history is
written after it. If the writer is killed in between, the next writer adds the missing line. No file holds code.

The fencing token is a number that only grows. A process that will move an alias later takes the next token first, and
can't move the alias once another process has taken a later one. So a process that was suspended while others took it
for dead changes nothing (Kleppmann, "How to do distributed locking", 2016).
"""

import hashlib
import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import msgspec

from pipeline.core.errors import MovedError, RegistryError
from pipeline.evaluation.output_files import METRICS_NAME
from pipeline.evaluation.predictions import PREDICTIONS_NAME
from pipeline.models import checkpoint
from pipeline.retraining.alias_file import (
    Move,
    alias_names,
    encode,
    read_alias,
    read_backwards,
    read_history,
    write_alias,
    write_history,
)
from pipeline.storage import files as storage

__all__ = [
    "CANDIDATE",
    "CHALLENGER",
    "CHAMPION",
    "VERSION_NAME",
    "Move",
    "Version",
    "add",
    "aliases",
    "current",
    "get",
    "history",
    "move",
    "newest_first",
    "nominate",
    "previous",
    "read_version",
    "roll_back_from",
    "rollback",
    "take_fence",
    "version_ids",
    "version_uri",
    "versions",
]

CHAMPION, CHALLENGER, CANDIDATE = "champion", "challenger", "candidate"
VERSION_NAME = "version.json"
_FORMAT = 1
_ID_LENGTH = 16


@dataclass(frozen=True)
class Version:
    """An immutable model version, the content of `version.json`."""

    recipe: str  # name
    dataset_digest: str
    top1: float  # of the certified evaluation, in [0, 1]
    rows: Annotated[int, msgspec.Meta(ge=0)]  # of the certified evaluation
    certificate: str  # digest
    parent: str  # ID of the version whose weights training began with, or ""
    files: dict[str, str]  # {name: SHA-256}
    created: Annotated[float, msgspec.Meta(ge=0, le=1e11)] = 0.0  # seconds since the epoch; not part of the ID
    id: str = ""

    def computed_id(self) -> str:
        """Returns the first 16 hex digits of the SHA-256 of the canonical JSON of all fields but `id` and `created`."""
        values = {**asdict(self), "id": "", "created": 0.0, "format": _FORMAT}
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:_ID_LENGTH]


# --- versions ----------------------------------------------------------------------------------------------------


def version_uri(registry: str, version: str) -> str:
    """Returns the URI of a version's folder, which can be used as a finished training run (`--checkpoint`)."""
    return storage.join(registry, "versions", version)


class _Certificate(msgspec.Struct):
    checkpoint_sha256: str
    predictions_sha256: str
    rows: int
    digest: str


class _Top1(msgspec.Struct):
    top1: float


class _Evaluated(msgspec.Struct):
    """What a version takes from `metrics.json`."""

    certificate: _Certificate
    metrics: _Top1


def add(registry: str, run: str, evaluation: str, parent: str = "") -> Version:
    """Copies a finished run's model and its certified evaluation into the registry, and returns the version.

    Adding the same again returns the version that is there. registry: URI; a new one needs no preparation. run: URI of
    a finished training run. evaluation: URI of the folder that its evaluation wrote. parent: ID or alias of the
    version whose weights training began with.

    Raises RegistryError if a file is missing, the evaluation is of another model, or the parent isn't there.
    """
    contents = _read_contents(run, evaluation)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    place = storage.join(run, checkpoint.OUTPUT_NAME)
    output = storage.as_record(
        storage.parse_json(contents[checkpoint.OUTPUT_NAME], place), place, checkpoint.Output, "give another run"
    )
    evaluated = storage.parse_record(
        contents[METRICS_NAME], storage.join(evaluation, METRICS_NAME), _Evaluated, "evaluate the run once more"
    )
    certificate = evaluated.certificate
    for what, certified, found in (
        ("weights", certificate.checkpoint_sha256, hashes[checkpoint.MODEL_NAME]),
        ("predictions", certificate.predictions_sha256, hashes[PREDICTIONS_NAME]),
    ):
        if certified != found:
            raise RegistryError(
                f"{evaluation}: its certificate is of other {what} ({certified[:12]}, not {found[:12]}); give the "
                f"evaluation of this run, which is made by: {evaluation_command(run)}"
            )
    version = Version(
        output.recipe["name"],
        output.dataset_digest,
        evaluated.metrics.top1,
        certificate.rows,
        certificate.digest,
        get(registry, parent).id if parent else "",
        hashes,
    )
    version = replace(version, id=version.computed_id(), created=time.time())
    folder = version_uri(registry, version.id)
    place = storage.join(folder, VERSION_NAME)
    if not storage.exists(place):
        for name, data in contents.items():
            storage.write_bytes(storage.join(folder, name), data)
        storage.write_once(place, encode(asdict(version)))  # last: its presence makes the version complete
    return get(registry, version.id)


def evaluation_command(run: str, out: str = "OUT") -> str:
    """Returns the command that makes the evaluation of a run which `add` needs."""
    return f"jobs/evaluate.py --checkpoint {shlex.quote(run)} --data DATA --out {shlex.quote(out)}"


def _read_contents(run: str, evaluation: str) -> dict[str, bytes]:
    """Returns {name: bytes} of the files of a version. Raises RegistryError if one is missing."""
    folders = {
        checkpoint.MODEL_NAME: run,
        checkpoint.OUTPUT_NAME: run,
        METRICS_NAME: evaluation,
        PREDICTIONS_NAME: evaluation,
    }
    contents = {}
    for name, folder in folders.items():
        place = storage.join(folder, name)
        if not storage.exists(place):
            remedy = "give a finished run"
            if folder == evaluation:
                remedy = f"give the evaluation of the run, which is made by: {evaluation_command(run, evaluation)}"
            raise RegistryError(f"{place}: no such file; {remedy}")
        contents[name] = storage.read_bytes(place)
    return contents


def get(registry: str, name: str) -> Version:
    """Returns a version by its ID, a unique beginning of its ID, or an alias.

    Raises RegistryError if there is no such version, or several.
    """
    move = current(registry, name)
    known = version_ids(registry)
    matching = [move.version] if move else [each for each in known if name and each.startswith(name)]
    if len(matching) != 1:
        problem = f"{len(matching)} versions begin with that" if matching else "no such version or alias"
        choices = ", ".join(known[:8]) or "none yet"
        raise RegistryError(f"version={name!r}: {problem} in {registry}; versions: {choices}")
    return read_version(registry, matching[0])


def versions(registry: str) -> list[Version]:
    """Returns all versions, oldest first."""
    found = (read_version(registry, each) for each in version_ids(registry))
    return sorted(found, key=lambda version: (version.created, version.id))


def version_ids(registry: str) -> list[str]:
    """Returns the sorted IDs of the complete versions."""
    names = storage.list_directories(storage.join(registry, "versions"))
    return sorted(name for name in names if storage.exists(storage.join(version_uri(registry, name), VERSION_NAME)))


def read_version(registry: str, version: str) -> Version:
    """Returns the version of a full ID."""
    place = storage.join(version_uri(registry, version), VERSION_NAME)
    return storage.read_record(place, Version, "restore it from a copy of the registry")


# --- aliases -----------------------------------------------------------------------------------------------------


def current(registry: str, alias: str) -> Move | None:
    """Returns the newest move of an alias, or None if it was never set."""
    return read_alias(registry, alias).move


def take_fence(registry: str, alias: str) -> int:
    """Takes and returns the alias's next fencing token: `move` refuses every earlier one from now on."""
    while True:
        state = read_alias(registry, alias)
        if write_alias(registry, alias, replace(state, fence=state.fence + 1)):
            return state.fence + 1


def move(registry: str, alias: str, version: str, reason: str, expected: Move | None, fence: int | None = None) -> Move:
    """Atomically points an alias at a version (compare-and-swap) and returns the move.

    expected: the newest move that the caller knows (`current`), None if the alias was never set. fence: the caller's
    fencing token (`take_fence`); None if it has none. Pointing the alias at the version that it names already changes
    nothing and returns `expected`.

    Raises RegistryError if the newest move isn't `expected`, or another process has taken a later fencing token: of any
    number of concurrent moves exactly one succeeds.
    """
    if expected is not None and expected.version == version and current(registry, alias) == expected:
        return expected
    last = expected.number if expected else 0
    new = Move(alias, last + 1, get(registry, version).id, last, reason, time.time())
    return _swap(registry, new, expected, fence)


def nominate(registry: str, version: str, reason: str, champion: Move, fence: int | None = None) -> Move:
    """Points the alias `candidate` at a version that was compared with the champion, and returns the move.

    champion: the champion's move that the version was compared with. fence: the caller's fencing token for the
    champion, or None. Naming the candidate again that is pending against the same champion changes nothing. Raises
    RegistryError as `move` does: if the champion has been moved, or another process has taken a later fencing token.
    """
    newest, found = current(registry, CANDIDATE), get(registry, version).id
    state = read_alias(registry, CHAMPION)
    if state.move != champion or fence not in (None, state.fence):
        raise _refusal(registry, CHAMPION, champion)
    if newest is not None and (newest.version, newest.against) == (found, champion.number):
        return newest
    last = newest.number if newest else 0
    return _swap(registry, Move(CANDIDATE, last + 1, found, last, reason, time.time(), champion.number), newest)


def rollback(registry: str, alias: str = CHAMPION, reason: str = "rolled back") -> Move:
    """Points an alias at the version that it named before, and returns the move. A second rollback goes back further.

    Raises RegistryError if there is no earlier version.
    """
    newest = current(registry, alias)
    if newest is None or not newest.before:
        raise RegistryError(f"{alias}: there is nothing to go back to in {registry}")
    return roll_back_from(registry, newest, reason)


def roll_back_from(registry: str, expected: Move, reason: str, fence: int | None = None) -> Move:
    """Points an alias at the version before the move `expected`, as `rollback`. fence, errors: as those of `move`."""
    target = previous(registry, expected)
    assert target is not None
    new = Move(expected.alias, expected.number + 1, target.version, target.before, reason, time.time())
    return _swap(registry, new, expected, fence)


def previous(registry: str, move: Move) -> Move | None:
    """Returns the move that a rollback of `move` goes back to; None if there is none."""
    moves = newest_first(registry, move.alias) if move.before else ()
    return next((each for each in moves if each.number == move.before), None)


def _swap(registry: str, new: Move, expected: Move | None, fence: int | None = None) -> Move:
    state = read_alias(registry, new.alias)
    if expected is not None:
        write_history(registry, expected)  # its writer may have been killed before it did
    passes = state.move == expected and fence in (None, state.fence)
    if not (passes and write_alias(registry, new.alias, replace(state, move=new))):
        raise _refusal(registry, new.alias, expected)
    write_history(registry, new)
    return new


def _refusal(registry: str, alias: str, expected: Move | None) -> MovedError:
    """Returns the error of a caller that expected another newest move, or has an old fencing token."""
    newest = current(registry, alias)
    if newest == expected:
        cause = "another process is about to move it (it took a later fencing token)"
    else:
        cause = f"another process has moved it meanwhile, to {newest.version if newest else 'nothing'}"
    return MovedError(f"{alias}: {cause}; nothing was changed; look at the history and decide again")


def history(registry: str, alias: str = CHAMPION) -> list[Move]:
    """Returns all moves of an alias, oldest first, also a newest one whose history file is still missing."""
    moves, newest = read_history(registry, alias), current(registry, alias)
    return moves if newest is None or newest in moves else [*moves, newest]


def newest_first(registry: str, alias: str = CHAMPION) -> Iterator[Move]:
    """Yields all moves of an alias, newest first. Each is read when it is asked for: each history file is a request."""
    newest = current(registry, alias)
    if newest is not None:
        yield newest
    yield from (move for move in read_backwards(registry, alias) if move != newest)


def aliases(registry: str) -> dict[str, str]:
    """Returns {alias: ID of its version}."""
    moves = {name: current(registry, name) for name in alias_names(registry)}
    return {name: newest.version for name, newest in moves.items() if newest is not None}
