"""Write versions of data sets by hand, without a source: rows left out and relabelled, and shards of another data set.

What `ingest(..., onto=)` does is more: it finds the changes, and describes the version as a whole.
"""

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from pipeline.dataset.manifest import MANIFEST_NAME, VERSION_SCHEMA_VERSION, Manifest, Shard, load_stored
from pipeline.dataset.version import Changes, derive
from pipeline.storage import files


def make_version(
    parent: str,
    out: str,
    changes: Mapping[str, Changes],
    more: str | None = None,
    classes: tuple[str, ...] | None = None,
) -> Manifest:
    """Writes a version and returns its manifest. more: a data set with the same classes, whose shards become its own.

    classes: of the version; None for those of the parent.
    """
    stored = load_stored(parent)
    classes = classes or stored.classes
    added: dict[str, tuple[Shard, ...]] = {}
    if more is not None:
        for name, split in load_stored(more).splits.items():
            added[name] = split.shards
            for shard in split.shards:
                for path in (shard.path, shard.provenance_path):
                    files.write_bytes(files.join(out, path), files.read_bytes(files.join(more, path)))
    derived = derive(parent, out, classes, changes, added)
    manifest = replace(
        stored,
        name=files.basename(out),
        classes=classes,
        splits=derived.splits,
        version=derived.version,
        schema_version=VERSION_SCHEMA_VERSION,
    ).with_digest()
    files.write_bytes(files.join(out, MANIFEST_NAME), manifest.to_json())
    return manifest


def deletions(rows: Mapping[int, str]) -> pa.Table:
    """Returns `Changes.deleted` for {row: reason}."""
    return pa.table({"row": pa.array(rows, pa.int64()), "reason": pa.array(rows.values(), pa.string())})


def corrections(rows: Mapping[int, str], reason: str = "corrected: by hand") -> pa.Table:
    """Returns `Changes.corrected` for {row: class}."""
    columns = {"row": pa.array(rows, pa.int64()), "class": pa.array(rows.values(), pa.string())}
    return pa.table({**columns, "reason": pa.array([reason] * len(rows), pa.string())})
