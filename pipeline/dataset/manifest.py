"""What an ingested data set is: `manifest.json`, written last, so that half a data set has none."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.core.errors import DatasetError
from pipeline.storage import files

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Shard:
    """One Parquet file, its path relative to the manifest, and the provenance of its rows.

    row_group_rows, row_group_offsets, row_group_bytes: rows, first byte and bytes of each row group.
    """

    path: str
    rows: int
    bytes: int
    sha256: str
    row_group_rows: tuple[int, ...]
    row_group_offsets: tuple[int, ...]
    row_group_bytes: tuple[int, ...]
    provenance_path: str
    provenance_sha256: str


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
    """A finished data set.

    source_digest: a hash over key, label and SHA-256 of every file of the source, wherever it lay. quarantined: files
    that couldn't be stored (`quarantine.parquet`), by reason. repaired: rows that aren't stored as they came, by what
    was done. leaked: for each split but train, the keys of rows that have a duplicate or near duplicate in train.
    quality: see `ingestion.duplicates`; empty where nothing was decoded. settings: what the bytes depend on besides
    the source. digest: a hash over all of this but the name.
    """

    name: str
    classes: tuple[str, ...]
    plan_seed: int
    splits: dict[str, Split]
    source_digest: str = ""
    quarantined: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    leaked: dict[str, tuple[str, ...]] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    schema_version: int = SCHEMA_VERSION

    def computed_digest(self) -> str:
        """Returns the SHA-256 (hex) of the manifest's canonical JSON without name and digest.

        A folder and an archive of it have different names and are the same data set.
        """
        values = {**asdict(self), "name": "", "digest": ""}
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def signed(self) -> "Manifest":
        """Returns the manifest with its digest."""
        return replace(self, digest=self.computed_digest())

    @property
    def rows(self) -> int:
        """Rows of all splits."""
        return sum(split.rows for split in self.splits.values())

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
            source_digest=values["source_digest"],
            quarantined=values["quarantined"],
            repaired=values["repaired"],
            leaked={name: tuple(keys) for name, keys in values["leaked"].items()},
            quality=values["quality"],
            settings=values["settings"],
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
    shards = tuple(map(parse_shard, values["shards"]))
    return Split(rows=values["rows"], rows_per_class=tuple(values["rows_per_class"]), shards=shards)


def parse_shard(values: dict[str, Any]) -> Shard:
    """Returns the shard in a manifest's JSON."""
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return Shard(**plain)


def is_dataset(uri: str) -> bool:
    """Whether a finished data set lies at `uri`."""
    return files.exists(files.join(uri, MANIFEST_NAME))


def load(uri: str) -> Manifest:
    """Returns the manifest of the data set at `uri`. Raises DatasetError if there is none."""
    place = files.join(uri, MANIFEST_NAME)
    if not files.exists(place):
        raise DatasetError(f"{uri}: no {MANIFEST_NAME}, so no finished data set; run jobs/ingest.py first")
    return parse(files.read_bytes(place), place)
