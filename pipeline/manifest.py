"""What an ingested data set is: `manifest.json`, written last, so that half a data set has none."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.errors import DatasetError

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One Parquet file. `path` is relative to the manifest; `row_group_rows` lists the rows of each row group."""

    path: str
    rows: int
    bytes: int
    sha256: str
    row_group_rows: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """One split: its rows, rows per class (in the order of the class list) and shards."""

    rows: int
    rows_per_class: tuple[int, ...]
    shards: tuple[Shard, ...]

    @property
    def row_group_rows(self) -> tuple[int, ...]:
        """Rows of each row group of the split, shard after shard."""
        return tuple(rows for shard in self.shards for rows in shard.row_group_rows)

    @property
    def row_group_places(self) -> list[tuple[Shard, int]]:
        """(shard, index of the row group in it) for each row group of the split."""
        return [(shard, index) for shard in self.shards for index in range(len(shard.row_group_rows))]


@dataclass(frozen=True)
class Manifest:
    """A finished data set. `digest` is a hash over everything that the rows and their places depend on."""

    name: str
    classes: tuple[str, ...]
    plan_seed: int
    splits: dict[str, Split]
    digest: str = ""
    schema_version: int = SCHEMA_VERSION

    def computed_digest(self) -> str:
        """Returns the SHA-256 (hex) of the manifest's canonical JSON without name and digest.

        A folder and an archive of it have different names and are the same data set.
        """
        values = {**asdict(self), "name": "", "digest": ""}
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def split(self, name: str) -> Split:
        """Returns a split. Raises DatasetError with the names there are."""
        if name not in self.splits:
            raise DatasetError(f"split {name!r} isn't in data set {self.name!r}; it holds {', '.join(self.splits)}")
        return self.splits[name]

    def to_json(self) -> bytes:
        """Returns the content of `manifest.json`."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


def parse(data: bytes, uri: str) -> Manifest:
    """Returns the manifest in `data`. Raises DatasetError if it is damaged, edited or of another schema."""
    try:
        values = json.loads(data)
        version = values["schema_version"]
        if version != SCHEMA_VERSION:
            raise DatasetError(f"{uri}: manifest schema {version}, this version reads {SCHEMA_VERSION}; ingest again")
        manifest = Manifest(
            name=values["name"],
            classes=tuple(values["classes"]),
            plan_seed=values["plan_seed"],
            splits={name: _parse_split(split) for name, split in values["splits"].items()},
            digest=values["digest"],
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{uri}: not a manifest of this project ({error!r}); ingest again") from error
    if manifest.digest != manifest.computed_digest():
        raise DatasetError(
            f"{uri}: the manifest doesn't match its own digest; it was edited or damaged: delete the folder and ingest "
            "again"
        )
    return manifest


def _parse_split(values: dict[str, Any]) -> Split:
    shards = tuple(Shard(**{**s, "row_group_rows": tuple(s["row_group_rows"])}) for s in values["shards"])
    return Split(rows=values["rows"], rows_per_class=tuple(values["rows_per_class"]), shards=shards)


def is_dataset(uri: str) -> bool:
    """Whether a finished data set lies at `uri`."""
    return storage.exists(storage.join(uri, MANIFEST_NAME))


def load(uri: str) -> Manifest:
    """Returns the manifest of the data set at `uri`. Raises DatasetError if there is none."""
    place = storage.join(uri, MANIFEST_NAME)
    if not storage.exists(place):
        raise DatasetError(f"{uri}: no {MANIFEST_NAME}, so no finished data set; run jobs/ingest.py first")
    return parse(storage.read_bytes(place), place)


def shard_starts(split: Split) -> np.ndarray:
    """Returns int64 [num_shards]: the index of each shard's first row in the split."""
    rows = np.array([shard.rows for shard in split.shards], dtype=np.int64)
    return np.cumsum(rows) - rows
