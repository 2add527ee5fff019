"""Versions: data sets that refer to the shards of an earlier one, and leave out or relabel some of its rows.

No shard is written or changed here. What is new lies in shards of the version's own, which the caller has written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from pipeline.core.errors import DatasetError
from pipeline.dataset.edits import (
    CORRECTIONS_NAME,
    CORRECTIONS_SCHEMA,
    DELETIONS_NAME,
    DELETIONS_SCHEMA,
    edit_file,
    live_rows,
    read_edits,
    rows_by_shard,
    rows_per_group,
)
from pipeline.dataset.manifest import Manifest, load_stored
from pipeline.dataset.parquet import parquet_bytes, read_split_provenance, stored_provenance
from pipeline.dataset.records import Base, EditFile, Rows, Shard, Split, Version, edit_name, of_version
from pipeline.storage import files

BY_PEOPLE = "corrected:"
"""How the reasons of edits begin that a person has made: they are remembered while the source has the row."""
REWRITING = ("_versions", "forget", "plan.json")
"""Lies below the folder of the versions while some of them are being rewritten."""
LEASE = ("_versions", "lease.json")
"""Held, below the folder of the versions, while some are dropped, rewritten or mixed."""
NAME_DIGITS = 12  # of a digest, that name a base
_DELETED = pa.schema([("row", pa.int64()), ("reason", pa.string())])
_CORRECTED = pa.schema([("row", pa.int64()), ("class", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class Changes:
    """What a version changes in a split of its parent. row: int64, index in the parent's split, each at most once."""

    deleted: pa.Table = field(default_factory=_DELETED.empty_table)
    """row, and reason: why it is left out."""

    corrected: pa.Table = field(default_factory=_CORRECTED.empty_table)
    """row, class: name of its class from now on, and reason. Rows that are deleted, too, are left out."""


@dataclass(frozen=True)
class Derived:
    """The parts of a version's manifest that follow from its parent and its changes."""

    splits: dict[str, Split]
    """Those that have rows: in the parent's order, then new ones."""

    version: Version
    """What the version refers to."""


def by_people(edits: pa.Table) -> pa.Table:
    """Returns the edits that people have made, of a table of DELETIONS_SCHEMA or CORRECTIONS_SCHEMA; shard: string."""
    edits = edits.set_column(0, "shard", edits["shard"].cast(pa.string()))
    return edits.filter(pa.compute.starts_with(edits["reason"], BY_PEOPLE))


def derive(
    parent: str,
    out: str,
    classes: tuple[str, ...],
    changes: Mapping[str, Changes],
    added: Mapping[str, tuple[Shard, ...]],
    stored: Manifest | None = None,
) -> Derived:
    """Writes the edit files of a version to the folder `out`, and returns its splits and what it refers to.

    parent, out: absolute URIs of a data set and of the version's folder. classes: of the version; those of the parent
    are found among them by name. changes: {split: changes of the parent's rows}. added: {split: the version's own
    shards}, which lie below `out` already. stored: the parent's manifest as it is in the file; None to read it. Raises
    DatasetError if the parent is a mixture, or a row stays that is of a class that the version lacks.
    """
    stored = stored or load_stored(parent)
    if stored.sources:
        raise DatasetError(f"{parent}: is a mixture, which has no versions; make one of each of its data sets")
    new = [_in_shards(parent, stored, split, each) for split, each in changes.items()]
    earlier = _earlier_edits(parent, stored)
    deletions = pa.concat_tables([earlier[0], *(each[0] for each in new)])
    gone = rows_by_shard(deletions)
    kept = {*by_people(deletions)["shard"].to_pylist()}
    shards: dict[str, list[Shard]] = {}
    for name, split in stored.splits.items():
        referred = (_with_deletions(_referred(shard, stored), gone) for shard in split.shards)
        shards[name] = [shard for shard in referred if shard.live_rows or edit_name(shard) in kept]
    for name, more in added.items():
        shards.setdefault(name, []).extend(more)
    shards = {name: each for name, each in shards.items() if any(shard.live_rows for shard in each)}
    all_shards = [shard for each in shards.values() for shard in each]
    names = pa.array(sorted(map(edit_name, all_shards)), pa.string())
    version = Version(
        stored.digest,
        _bases(parent, out, stored, {shard.base for shard in all_shards}),
        write_edits(out, DELETIONS_NAME, deletions, names),
        write_edits(out, CORRECTIONS_NAME, _newest(deletions, *(each[1] for each in reversed(new)), earlier[1]), names),
    )
    return Derived({name: _counted(out, tuple(each), version, classes) for name, each in shards.items()}, version)


def _referred(shard: Shard, stored: Manifest) -> Shard:
    """Returns a shard of the parent's manifest as versions of the parent refer to it."""
    return replace(shard, base=shard.base or stored.digest[:NAME_DIGITS])


def _with_deletions(shard: Shard, gone: Mapping[str, Rows]) -> Shard:
    """Returns a shard with the number of deleted rows of each row group. gone: {name in edit files: deleted rows}."""
    rows = gone.get(edit_name(shard))
    return shard if rows is None else replace(shard, deleted=rows_per_group(shard, rows))


def _in_shards(parent: str, stored: Manifest, split: str, changes: Changes) -> tuple[pa.Table, pa.Table]:
    """Returns the changes of a split by shard and stored row: tables of DELETIONS_SCHEMA and CORRECTIONS_SCHEMA."""
    deletions, corrections = [DELETIONS_SCHEMA.empty_table()], [CORRECTIONS_SCHEMA.empty_table()]
    first = 0
    for shard, resolved in zip(stored.split(split).shards, stored.resolved.split(split).shards, strict=True):
        stop, keys = first + resolved.live_rows, None
        for found, table, schema in (
            (deletions, changes.deleted, DELETIONS_SCHEMA),
            (corrections, changes.corrected, CORRECTIONS_SCHEMA),
        ):
            chosen = table.filter((pa.compute.field("row") >= first) & (pa.compute.field("row") < stop))
            if chosen.num_rows:
                rows = live_rows(parent, resolved)[chosen["row"].to_numpy() - first]
                keys = stored_provenance(parent, resolved, ["key"])["key"] if keys is None else keys
                name = pa.array([edit_name(_referred(shard, stored))] * len(rows))
                places = pa.table({"shard": name, "row": rows, "key": keys.take(pa.array(rows))})
                for column in schema.names[3:]:
                    places = places.append_column(column, chosen[column])
                found.append(places.cast(schema))
        first = stop
    return pa.concat_tables(deletions), pa.concat_tables(corrections)


def _earlier_edits(parent: str, stored: Manifest) -> tuple[pa.Table, pa.Table]:
    """Returns the deletions and corrections that the parent has, with the names that shards have in its versions."""
    shards = (shard for split in stored.splits.values() for shard in split.shards)
    own = {shard.path: edit_name(_referred(shard, stored)) for shard in shards if not shard.base}
    version = stored.version or Version("", {})
    tables = []
    for file, schema in ((version.deletions, DELETIONS_SCHEMA), (version.corrections, CORRECTIONS_SCHEMA)):
        table = read_edits(parent, file, schema)
        names = [own.get(name, name) for name in table["shard"].to_pylist()]
        tables.append(table.set_column(0, "shard", pa.array(names, pa.string()).dictionary_encode()).cast(schema))
    return tables[0], tables[1]


def _newest(deletions: pa.Table, *corrections: pa.Table) -> pa.Table:
    """Returns the corrections of rows that aren't deleted; of several of one row, that of the first table."""
    taken = {*zip(deletions["shard"].to_pylist(), deletions["row"].to_pylist(), strict=True)}
    kept = []
    for table in corrections:
        places = [*zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True)]
        kept.append(table.filter(pa.array([place not in taken for place in places], pa.bool_())))
        taken.update(places)
    return pa.concat_tables(kept or [CORRECTIONS_SCHEMA.empty_table()])


def write_edits(out: str, name: str, table: pa.Table, shards: pa.Array) -> EditFile | None:
    """Writes the edits of some shards, sorted, and returns the reference to the file; None if there are none."""
    strings = table.set_column(0, "shard", table["shard"].cast(pa.string()))
    table = strings.filter(pa.compute.is_in(strings["shard"], value_set=shards)).sort_by(
        [("shard", "ascending"), ("row", "ascending")]
    )
    if not table.num_rows:
        return None
    data = parquet_bytes(table)
    files.write_bytes(files.join(out, name), data)
    return edit_file(name, data)


def _bases(parent: str, out: str, stored: Manifest, used: set[str]) -> dict[str, Base]:
    """Returns the data sets that hold the shards of the bases `used`, with their places as seen from `out`."""
    earlier = stored.version.bases if stored.version else {}
    places = {name: replace(base, uri=files.resolve(parent, base.uri)) for name, base in earlier.items()}
    places[stored.digest[:NAME_DIGITS]] = Base(parent, stored.digest, stored.classes)
    return {name: replace(base, uri=files.relative(base.uri, out)) for name, base in places.items() if name in used}


def _counted(out: str, shards: tuple[Shard, ...], version: Version, classes: tuple[str, ...]) -> Split:
    """Returns a split of these shards with its rows, in all and of each class."""
    resolved = Split(0, (), tuple(of_version(shard, version, classes) for shard in shards))
    labels = read_split_provenance(out, resolved, ["label"])["label"].to_numpy()
    return Split(len(labels), tuple(np.bincount(labels, minlength=len(classes)).tolist()), shards)


def folder_of_versions(uri: str) -> str:
    """Returns the folder in which the data set at an absolute URI lies, with its other versions."""
    folder = files.resolve(uri, "../")
    # a whole bucket lies in nothing
    return uri if not files.is_local(uri) and folder.partition("?")[0].endswith("://.") else folder


def check_not_rewritten(folder: str) -> None:
    """Raises DatasetError if versions in `folder` are being rewritten, or were when that was interrupted.

    A process that publishes a version there calls it after it has begun the version's folder: then either it finds the
    rewriting, or the rewriting finds the folder and doesn't begin.
    """
    if files.exists(files.join(folder, *REWRITING)):
        raise DatasetError(
            f"{folder}: images are being removed from its versions (`versions forget`); wait for it, or run it again "
            "if it was interrupted, then run the same command again"
        )
