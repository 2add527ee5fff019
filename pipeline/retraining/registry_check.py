"""Verification of a model registry: files against their checksums, versions against their IDs, aliases and history.

Records of models in use are checked, too: what was predicted, labels, and the reviews that the history refers to.
"""

import hashlib
from collections.abc import Iterator

from pipeline.core.errors import DamagedError, RegistryError
from pipeline.retraining.alias_file import Move, alias_names
from pipeline.retraining.live import store
from pipeline.retraining.registry import (
    CANDIDATE,
    CHAMPION,
    VERSION_NAME,
    current,
    history,
    read_version,
    version_ids,
    version_uri,
)
from pipeline.storage import files
from pipeline.storage.places import nearest


def check_place(registry: str) -> None:
    """Raises RegistryError unless a registry, or an empty folder, lies at the URI `registry`.

    A mistyped path would look like a registry without versions.
    """
    kind = files.kind(registry)
    if kind == "file":
        raise RegistryError(f"registry={registry}: is a file; give the folder of a registry")
    if kind == "missing":
        raise RegistryError(f"registry={registry}: no such folder; give the folder of one{nearest(registry)}")
    if (
        files.list_directories(files.join(registry, "versions"))
        or files.kind(files.join(registry, "aliases")) != "missing"
    ):
        return
    inside = files.join(registry, "registry")
    if files.exists(files.join(inside, "versions")):
        raise RegistryError(f"registry={registry}: is no registry, but holds one; give --registry {inside}")
    if files.list_directories(registry) or files.list_files(registry):
        raise RegistryError(f"registry={registry}: is no registry (it has no versions/); give the folder of one")


def verify(registry: str) -> list[str]:
    """Returns the problems of the registry at the URI `registry`, one line each.

    An interrupted upload isn't a problem: adding the version again completes it.
    """
    return [*_version_problems(registry), *_alias_problems(registry), *_live_problems(registry)]


def _version_problems(registry: str) -> Iterator[str]:
    known = set(version_ids(registry))
    for name in sorted(known):
        try:
            version = read_version(registry, name)
        except DamagedError as error:
            yield str(error)
            continue
        if version.computed_id() != name:
            yield f"version {name}: {VERSION_NAME} has changed (its ID would be {version.computed_id()})"
        if version.parent and version.parent not in known:
            yield f"version {name}: its parent {version.parent} is missing"
        for file, sha256 in version.files.items():
            place = files.join(version_uri(registry, name), file)
            if not files.exists(place):
                yield f"version {name}: {file} is missing"
            elif hashlib.sha256(files.read_bytes(place)).hexdigest() != sha256:
                yield f"version {name}: {file} has changed"


def _alias_problems(registry: str) -> Iterator[str]:
    known = set(version_ids(registry))
    for alias in alias_names(registry):
        try:
            newest, moves = current(registry, alias), history(registry, alias)
        except DamagedError as error:
            yield str(error)
            continue
        if newest is not None:
            yield from _problems_of_alias(alias, newest, moves, known)


def _problems_of_alias(alias: str, newest: Move, moves: list[Move], known: set[str]) -> Iterator[str]:
    if newest.version not in known:
        yield f"alias {alias}: version {newest.version} is missing"
    numbers = [move.number for move in moves]
    if numbers != list(range(1, len(moves) + 1)):
        yield f"alias {alias}: its history has gaps: {numbers}"
    elif moves[-1] != newest:
        yield f"alias {alias}: its history ends with another move than its newest"
    for move in moves:
        if move.version not in known:
            yield f"alias {alias}: move {move.number} is to version {move.version}, which is missing"


def _sound_history(registry: str, alias: str) -> list[Move]:
    """Returns the history of an alias; empty if it is damaged, which is a problem of the alias."""
    try:
        return history(registry, alias)
    except DamagedError:
        return []


def _live_problems(registry: str) -> Iterator[str]:
    histories = {alias: _sound_history(registry, alias) for alias in (CHAMPION, CANDIDATE)}
    known, champions = set(version_ids(registry)), {move.number for move in histories[CHAMPION]}
    for move in histories[CANDIDATE]:
        if move.against and move.against not in champions:
            yield f"alias {CANDIDATE}: move {move.number}: the champion's move {move.against} is missing"
    for alias, moves in histories.items():
        for move in moves:
            kind, identifier = move.mark
            if kind and kind != "night":
                try:
                    store.read_review(registry, identifier)
                except (RegistryError, DamagedError) as error:
                    yield f"alias {alias}: move {move.number}: {error}"
    for uri in store.traffic_uris(registry):
        try:
            head, _ = store.read_traffic(uri)
        except RegistryError as error:
            yield str(error)
            continue
        if f"/{head.first}/{head.second}/" not in uri:
            yield f"{uri}: is a record of {head.first} and {head.second}, in another's folder"
        for version in {head.first, head.second} - known - {store.ALONE}:
            yield f"{uri}: version {version} is missing"
    for uri in store.label_uris(registry):
        if not store.is_labels_intact(uri):
            yield f"{uri}: has changed"
