"""SQL by which DuckDB sees the rows of a data set: without those that a version leaves out, and with its classes."""

import os
from collections.abc import Iterable, Sequence

from pipeline.dataset.manifest import EditFile, Manifest, Shard, Split, load
from pipeline.storage import files

_NO_EDITS = "SELECT '' AS file, '' AS shard, 0 AS row, '' AS class WHERE false"
_NO_LABELS = "SELECT 0 AS map, 0 AS stored, '' AS class WHERE false"  # each row's class is that of a correction


def duckdb_views(uri: str | os.PathLike[str]) -> str:
    """Returns statements that make a view for each split of the data set at a path or URI.

        duckdb.execute(duckdb_views("data/photos/v3"))
        duckdb.sql("SELECT class, count(*) FROM train GROUP BY class")

    Columns: key, label (int32), class (its name), image (the encoded bytes), height, width. DuckDB reads the shards
    where they lie, and only the columns that a query needs; for S3 it must know the credentials (CREATE SECRET). Raises
    DatasetError if there is no data set.
    """
    uri = files.absolute(os.fspath(uri))
    data = load(uri)
    return "\n\n".join(_view(uri, data, name, split) for name, split in data.splits.items()) + "\n"


def _view(uri: str, data: Manifest, name: str, split: Split) -> str:
    maps = list(dict.fromkeys(_label_map(data, shard) for shard in split.shards))
    shards = [_line(uri, shard, maps.index(_label_map(data, shard))) for shard in split.shards]
    labels = [(number, *pair) for number, pairs in enumerate(maps) for pair in pairs]
    # Each file once: a mixture may refer to one from several versions.
    paths = ", ".join(dict.fromkeys(_text(_place(uri, shard.path)) for shard in split.shards))
    edits = [shard.edits for shard in split.shards if shard.edits]
    deletions = _edit_rows(uri, (each.deletions for each in edits), "''")
    corrections = _edit_rows(uri, (each.corrections for each in edits), "class")
    return f"""CREATE OR REPLACE VIEW {_name(name)} AS
WITH shards(file, name, deletions, corrections, prefix, map) AS (VALUES
  {_values(shards)}),
labels(map, stored, class) AS (
  {f"VALUES {_values(labels)}" if labels else _NO_LABELS}),
classes(label, class) AS (VALUES
  {_values(list(enumerate(data.classes)))}),
deletions(file, shard, row, class) AS (
  {deletions}),
corrections(file, shard, row, class) AS (
  {corrections}),
stored AS (
  SELECT shards.*, rows.* EXCLUDE (filename)
  FROM read_parquet([{paths}], filename = true, file_row_number = true) AS rows
  JOIN shards ON rows.filename = shards.file),
named AS (
  SELECT stored.*, coalesce(corrections.class, labels.class) AS class
  FROM stored
  LEFT JOIN corrections ON corrections.file = stored.corrections AND corrections.shard = stored.name
    AND corrections.row = stored.file_row_number
  LEFT JOIN labels ON labels.map = stored.map AND labels.stored = stored.label)
SELECT prefix || key AS key, classes.label::INTEGER AS label, named.class, image, height, width
FROM named JOIN classes ON classes.class = named.class
WHERE NOT EXISTS (
  SELECT 1 FROM deletions WHERE deletions.file = named.deletions AND deletions.shard = named.name
    AND deletions.row = named.file_row_number);"""


def _line(uri: str, shard: Shard, number: int) -> tuple[str | int, ...]:
    edits = shard.edits
    deletions = edits and edits.deletions and _place(uri, edits.deletions.path)
    corrections = edits and edits.corrections and _place(uri, edits.corrections.path)
    name = edits.shard if edits else ""
    return _place(uri, shard.path), name, deletions or "", corrections or "", shard.key_prefix, number


def _label_map(data: Manifest, shard: Shard) -> tuple[tuple[int, str], ...]:
    """Returns (label as it is stored, name of the class) of each class that rows of a shard may have."""
    labels = shard.edits.labels if shard.edits else None
    numbers = range(len(data.classes)) if labels is None else labels
    return tuple((stored, data.classes[label]) for stored, label in enumerate(numbers) if label >= 0)


def _edit_rows(uri: str, edit_files: Iterable[EditFile | None], value: str) -> str:
    places = dict.fromkeys(_text(_place(uri, each.path)) for each in edit_files if each)
    selects = [f"SELECT {place}, shard::VARCHAR, row, {value} FROM read_parquet({place})" for place in places]
    return "\n  UNION ALL ".join(selects or [_NO_EDITS])


def _place(uri: str, path: str) -> str:
    place = files.resolve(uri, path)
    return place if files.is_local(place) else place.split("?")[0]


def _values(lines: Sequence[tuple[str | int, ...]]) -> str:
    return ",\n  ".join(f"({', '.join(_text(v) if isinstance(v, str) else str(v) for v in line)})" for line in lines)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
