"""Models by version, and which of them is live, in a bucket or a folder.

Below the registry's URI:

    versions/ID/       weights, recipe, metrics with their certificate, predictions, and `version.json`, written last
    aliases/NAME.json  the newest move of an alias, such as champion, and its fence: written by a conditional write only
    history/NAME/N.json  every move, N counting from 1

A version's ID is a hash of what is in it, so adding the same one twice, also after a kill, adds it once, and it never
changes. An alias carries its whole newest move, and the history is written behind it: a kill in between loses nothing,
for whoever comes next writes that line first. Nothing in it is code.

The fence is a number that only grows: who means to move an alias later takes the next one, and can't move it any more
once somebody else has taken another. So a process that slept while others thought it dead changes nothing.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from pipeline.core.errors import RegistryError
from pipeline.evaluation.output_files import METRICS_NAME
from pipeline.evaluation.predictions import PREDICTIONS_NAME
from pipeline.models import checkpoint
from pipeline.storage import files as storage

CHAMPION, CHALLENGER = "champion", "challenger"
VERSION_NAME = "version.json"
_FORMAT = 1
_ID_LENGTH = 16


@dataclass(frozen=True)
class Version:
    """A model that doesn't change any more. files: {name: SHA-256}; top1, rows: of its certified evaluation; parent: ID
    of the version that it was trained from, or ""; created: seconds since the epoch, which aren't part of the ID.
    """

    recipe: str
    dataset_digest: str
    top1: float
    rows: int
    certificate: str
    parent: str
    files: dict[str, str]
    created: float = 0.0
    id: str = ""

    def computed_id(self) -> str:
        """Returns the first 16 digits of the SHA-256 (hex) of the canonical JSON of all but ID and time."""
        values = {**asdict(self), "id": "", "created": 0.0, "format": _FORMAT}
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[
            :_ID_LENGTH
        ]


@dataclass(frozen=True)
class Move:
    """One move of an alias. number: counts from 1; before: the number of the move that a rollback goes back to, 0 for
    none; time: seconds since the epoch."""

    alias: str
    number: int
    version: str
    before: int
    reason: str
    time: float


def version_uri(registry: str, version: str) -> str:
    """Where a version lies: what `--checkpoint` takes, as a finished run."""
    return storage.join(registry, "versions", version)


# --- versions ----------------------------------------------------------------------------------------------------


def add(registry: str, run: str, evaluation: str, parent: str = "") -> Version:
    """Copies a finished run's model, and its certified evaluation, into the registry, and returns the version.

    Raises RegistryError if the evaluation is of another model, or the parent isn't there.
    """
    places = {
        checkpoint.MODEL_NAME: run,
        checkpoint.OUTPUT_NAME: run,
        METRICS_NAME: evaluation,
        PREDICTIONS_NAME: evaluation,
    }
    contents = {}
    for name, folder in places.items():
        place = storage.join(folder, name)
        if not storage.exists(place):
            raise RegistryError(f"{place}: no such file; give a finished run, and what jobs/evaluate.py made of it")
        contents[name] = storage.read_bytes(place)
    files = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    metrics, output = json.loads(contents[METRICS_NAME]), json.loads(contents[checkpoint.OUTPUT_NAME])
    certificate = metrics["certificate"]
    for what, theirs, mine in (
        ("weights", certificate["checkpoint_sha256"], files[checkpoint.MODEL_NAME]),
        ("predictions", certificate["predictions_sha256"], files[PREDICTIONS_NAME]),
    ):
        if theirs != mine:
            raise RegistryError(f"{evaluation}: its certificate is of other {what} ({theirs[:12]}, not {mine[:12]})")
    if parent:
        get(registry, parent)
    unnamed = Version(
        output["recipe"]["name"],
        output["dataset_digest"],
        metrics["metrics"]["top1"],
        certificate["rows"],
        certificate["digest"],
        parent,
        files,
    )
    version = replace(unnamed, id=unnamed.computed_id(), created=time.time())
    folder = version_uri(registry, version.id)
    place = storage.join(folder, VERSION_NAME)
    if not storage.exists(place):
        for name, data in contents.items():
            storage.write_bytes(storage.join(folder, name), data)
        storage.write_once(place, json.dumps(asdict(version), indent=1).encode() + b"\n")
    return get(registry, version.id)


def get(registry: str, name: str) -> Version:
    """Returns a version by its ID, the beginning of one, or an alias.

    Raises RegistryError if there is none, or several.
    """
    move = current(registry, name)
    known = _ids(registry)
    matching = [move.version] if move else [each for each in known if name and each.startswith(name)]
    if len(matching) != 1:
        what = f"{len(matching)} versions begin so" if matching else "no such version or alias"
        there = ", ".join(known[:8]) or "none yet"
        raise RegistryError(f"version={name!r}: {what} in {registry}; there are {there}")
    return _read(registry, matching[0])


def versions(registry: str) -> list[Version]:
    """Returns all versions, the oldest first."""
    return sorted((_read(registry, each) for each in _ids(registry)), key=lambda version: (version.created, version.id))


def _ids(registry: str) -> list[str]:
    """IDs of the versions that are whole."""
    names = storage.list_directories(storage.join(registry, "versions"))
    return sorted(name for name in names if storage.exists(storage.join(version_uri(registry, name), VERSION_NAME)))


def _read(registry: str, version: str) -> Version:
    return Version(**storage.read_json(storage.join(version_uri(registry, version), VERSION_NAME)))


# --- aliases -----------------------------------------------------------------------------------------------------


def current(registry: str, alias: str) -> Move | None:
    """Returns the newest move of an alias, or None where it was never set."""
    return _current(registry, alias)[0]


def _current(registry: str, alias: str) -> tuple[Move | None, int, str]:
    """Returns the newest move, the fence, and the version of the file for `storage.replace`, "" where there is none."""
    found = storage.read_version(_alias_uri(registry, alias)) if alias.replace("-", "").isalnum() else None
    if found is None:
        return None, 0, ""
    content = json.loads(found[0])
    return content["move"] and Move(**content["move"]), content["fence"], found[1]


def _alias_uri(registry: str, alias: str) -> str:
    return storage.join(registry, "aliases", f"{alias}.json")


def _history_uri(registry: str, move: Move) -> str:
    return storage.join(registry, "history", move.alias, f"{move.number:06d}.json")


def take_fence(registry: str, alias: str) -> int:
    """Returns the alias's next fence, which this process holds until another one takes one: see `move`."""
    while True:
        now, fence, found = _current(registry, alias)
        if _write_alias(registry, alias, now, fence + 1, found):
            return fence + 1


def move(registry: str, alias: str, version: str, reason: str, expected: Move | None, fence: int | None = None) -> Move:
    """Has an alias name a version, if its newest move still is `expected` (None: it was never set), and nobody has
    taken a fence since this process took `fence` (None: it has none). Returns the move.

    Naming the version that it names already is no move. Raises RegistryError if somebody else has moved it meanwhile,
    or means to: of any number of racing moves exactly one succeeds.
    """
    if expected is not None and expected.version == version and current(registry, alias) == expected:
        return expected
    last = expected.number if expected else 0
    new = Move(alias, last + 1, get(registry, version).id, last, reason, time.time())
    return _move(registry, new, expected, fence)


def rollback(registry: str, alias: str = CHAMPION, reason: str = "rolled back") -> Move:
    """Has an alias name what it named before; once more goes back further. Raises RegistryError where nothing is."""
    now = current(registry, alias)
    if now is None or not now.before:
        raise RegistryError(f"{alias}: there is nothing to go back to in {registry}")
    back = next(each for each in history(registry, alias) if each.number == now.before)
    return _move(registry, Move(alias, now.number + 1, back.version, back.before, reason, time.time()), now)


def _move(registry: str, new: Move, expected: Move | None, fence: int | None = None) -> Move:
    now, holds, found = _current(registry, new.alias)
    if expected is not None:
        _write_history(registry, expected)  # in case its mover was killed
    passes = now == expected and fence in (None, holds)
    if not (passes and _write_alias(registry, new.alias, new, holds, found)):
        now = current(registry, new.alias)
        does = (
            "means to move it" if now == expected else f"has moved it meanwhile, to {now.version if now else 'nothing'}"
        )
        raise RegistryError(f"{new.alias}: somebody else {does}; nothing was changed; look at it, and decide again")
    _write_history(registry, new)
    return new


def _write_alias(registry: str, alias: str, move: Move | None, fence: int, found: str) -> bool:
    """Whether the file still was as `_current` found it, and is written."""
    content = {"move": move and asdict(move), "fence": fence}
    place, data = _alias_uri(registry, alias), json.dumps(content, indent=1).encode() + b"\n"
    return storage.replace(place, data, found) is not None if found else storage.write_once(place, data)


def _write_history(registry: str, move: Move) -> None:
    storage.write_once(_history_uri(registry, move), json.dumps(asdict(move), indent=1).encode() + b"\n")


def history(registry: str, alias: str = CHAMPION) -> list[Move]:
    """Returns all moves of an alias, the first first."""
    names = sorted(name for name, _ in storage.list_files(storage.join(registry, "history", alias)))
    moves = [Move(**storage.read_json(storage.join(registry, "history", alias, name))) for name in names]
    now = current(registry, alias)
    return moves if now is None or now in moves else [*moves, now]


def aliases(registry: str) -> dict[str, str]:
    """Returns {alias: version}."""
    names = [name for name, _ in storage.list_files(storage.join(registry, "aliases")) if name.endswith(".json")]
    moves = {name.removesuffix(".json"): current(registry, name.removesuffix(".json")) for name in sorted(names)}
    return {name: each.version for name, each in moves.items() if each is not None}


# --- checking ----------------------------------------------------------------------------------------------------


def verify(registry: str) -> list[str]:
    """Returns what is wrong, a line each: files against their checksums, versions against their IDs, aliases and their
    history. Nothing is wrong with an upload that was cut off: adding the version again completes it.
    """
    return [*_version_problems(registry), *_alias_problems(registry)]


def _version_problems(registry: str) -> Iterator[str]:
    known = set(_ids(registry))
    for name in sorted(known):
        version = _read(registry, name)
        if version.computed_id() != name:
            yield f"version {name}: {VERSION_NAME} has changed (its ID would be {version.computed_id()})"
        if version.parent and version.parent not in known:
            yield f"version {name}: its parent {version.parent} is gone"
        for file, sha256 in version.files.items():
            place = storage.join(version_uri(registry, name), file)
            if not storage.exists(place):
                yield f"version {name}: {file} is gone"
            elif hashlib.sha256(storage.read_bytes(place)).hexdigest() != sha256:
                yield f"version {name}: {file} has changed"


def _alias_problems(registry: str) -> Iterator[str]:
    known = set(_ids(registry))
    for alias, version in aliases(registry).items():
        if version not in known:
            yield f"alias {alias}: version {version} is gone"
        moves = history(registry, alias)
        if [each.number for each in moves] != list(range(1, len(moves) + 1)):
            yield f"alias {alias}: its history has gaps: {[each.number for each in moves]}"
        elif moves[-1] != current(registry, alias):
            yield f"alias {alias}: its history ends with another move than its newest"
        for each in moves:
            if each.version not in known:
                yield f"alias {alias}: move {each.number} is to version {each.version}, which is gone"
