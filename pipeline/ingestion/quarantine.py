"""`quarantine.parquet`: the files of a source that couldn't be stored, each with its reason."""

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import DatasetError
from pipeline.dataset.parquet import parquet_bytes, read_table
from pipeline.dataset.schema import as_schema
from pipeline.ingestion.sources import Index
from pipeline.ingestion.sources.index import rows_of_keys
from pipeline.ingestion.target import QUARANTINE_NAME
from pipeline.storage import files
from pipeline.storage.file_names import printable

if TYPE_CHECKING:
    from pipeline.ingestion.shard_task import Receipt

_REMEDY = "restore it from a copy, or delete it: then nothing names the files that couldn't be stored"
QUARANTINE_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("key", pa.string()),
        ("label", pa.int32()),
        ("reason", pa.string()),
        ("sha256", pa.string()),  # of the file as it is in the source
        ("bytes", pa.int64()),
        ("object", pa.string()),  # URI of the file, or of the archive that holds it
        ("offset", pa.int64()),
    ]
)


def quarantine_table(index: Index, receipts: "list[Receipt]") -> pa.Table:
    """Returns a table of QUARANTINE_SCHEMA: every refused file, sorted by split and key."""
    rows = []
    for split, table in index.splits.items():
        entries = [entry for receipt in receipts if receipt.split == split for entry in receipt.quarantined]
        row_of = rows_of_keys(table, [entry["key"] for entry in entries])
        for entry in entries:
            if (at := row_of.get(entry["key"])) is None:
                raise DatasetError(
                    f"{entry['key']}: refused by an interrupted ingest, and not in the source; delete the unfinished "
                    "data set, then run the same command again"
                )
            place = {"object": _shown(table["object"][at].as_py()), "offset": table["offset"][at].as_py()}
            rows.append({"split": split, **entry, **place})
    for each in index.unusable:
        row = {"split": each.split, "key": each.key, "label": each.label, "reason": each.reason}
        rows.append({**row, "sha256": "", "bytes": 0, "object": _shown(each.object), "offset": 0})
    rows.sort(key=lambda row: (row["split"], row["key"]))
    return pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA)


def _shown(uri: str) -> str:
    """Returns the URI of a file for people: names that aren't UTF-8 escaped, without the query of a store."""
    return printable(uri if files.is_local(uri) else uri.split("?")[0])


def write_quarantine(out: str, table: pa.Table) -> None:
    """Writes the list beside the manifest of a data set."""
    files.write_bytes(files.join(out, QUARANTINE_NAME), parquet_bytes(table))


def read_quarantine(uri: str) -> pa.Table:
    """Returns the files that a data set leaves out, of QUARANTINE_SCHEMA; none if the list was removed.

    Raises DatasetError if the list is damaged.
    """
    place = files.join(uri, QUARANTINE_NAME)
    try:
        table = read_table(place, remedy=_REMEDY)
    except FileNotFoundError:
        return QUARANTINE_SCHEMA.empty_table()
    table = as_schema(table, QUARANTINE_SCHEMA, place, _REMEDY)
    if not pc.all(pc.match_substring_regex(table["sha256"], "^([0-9a-f]{64})?$"), min_count=0).as_py():
        raise DatasetError(f"{place}: damaged: some sha256 is no SHA-256 in hexadecimal; {_REMEDY}")
    return table
