"""The manifest of a data set: `manifest.json`, written last, so that an unfinished data set has none."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec

from pipeline.core.errors import DatasetError
from pipeline.storage import files

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split, and the provenance of its rows."""

    path: str  # below the folder of the manifest
    rows: int
    bytes: int
    sha256: str  # hex
    row_group_rows: tuple[int, ...]
    row_group_offsets: tuple[int, ...]  # first byte of each row group in the file
    row_group_bytes: tuple[int, ...]
    provenance_path: str  # below the folder of the manifest; its rows are described by `schema.PROVENANCE_SCHEMA`
    provenance_sha256: str  # hex
    key_prefix: str = ""  # of the keys of a mixture's source, so that keys stay unique; not in the file


@dataclass(frozen=True)
class Split:
    """One split: its rows and its shards."""

    rows: int
    rows_per_class: tuple[int, ...]  # in the order of the manifest's classes
    shards: tuple[Shard, ...]

    @property
    def row_group_rows(self) -> tuple[int, ...]:
        """Rows of each row group of the split, shard after shard."""
        return tuple(rows for shard in self.shards for rows in shard.row_group_rows)

    @property
    def row_group_places(self) -> list[tuple[Shard, int]]:
        """(shard, index of the row group in the shard) for each row group of the split."""
        return [(shard, index) for shard in self.shards for index in range(len(shard.row_group_rows))]


@dataclass(frozen=True)
class Source:
    """One of the data sets that a mixture is made of."""

    uri: str
    """Absolute path or URI; not part of the digest."""

    digest: str
    """Digest of its manifest."""

    shards: dict[str, int]
    """Its number of shards in each split, which follow those of the sources before it."""


@dataclass(frozen=True)
class Manifest:
    """Everything that is known of a finished data set but its rows."""

    name: str
    """Name of the source's folder or archive. Not part of the digest."""

    classes: tuple[str, ...]
    """Names of the classes; a label is an index into them."""

    plan_seed: int
    """Seed of the order of rows in the shards."""

    splits: dict[str, Split]
    """The splits by name, "train" and "val" among them."""

    source_digest: str = ""
    """SHA-256 (hex) over split, key, label and SHA-256 of every file of the source, wherever the source lay."""

    quarantined: dict[str, int] = field(default_factory=dict)
    """Files that couldn't be stored (`quarantine.parquet`): how many for each kind of reason."""

    repaired: dict[str, int] = field(default_factory=dict)
    """Rows that aren't stored as they came: how many for each kind of repair."""

    leaked: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """For each split but train, the keys of its rows that have a duplicate or near duplicate in train."""

    quality: dict[str, Any] = field(default_factory=dict)
    """Pixel statistics and pairs of duplicates (`ingestion.quality.statistics`); empty if no image was decoded."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of `ingestion.IngestSettings`."""

    val_share: float = 0.0
    """Share of each class that ingest held out as val by a hash of the keys, because the source had no val split; 1 if
    every row is val. 0, and left out of the JSON and the digest, if the source had one."""

    sources: dict[str, Source] = field(default_factory=dict)
    """The data sets that a mixture is made of, by name (`mixture.mix`): their shards stay where they are. Empty, and
    left out of the JSON and the digest, if the data set has its own shards."""

    digest: str = ""
    """SHA-256 (hex) over all other fields but the name: the identity of the data set."""

    schema_version: int = SCHEMA_VERSION
    """Version of these fields."""

    def computed_digest(self) -> str:
        """Returns the SHA-256 (hex) of the manifest's canonical JSON without name and digest.

        A folder and an archive of it have different names and are the same data set.
        """
        values = {**self._values(), "name": "", "digest": ""}
        for source in values.get("sources", {}).values():
            source["uri"] = ""
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def with_digest(self) -> "Manifest":
        """Returns the manifest with its digest."""
        return replace(self, digest=self.computed_digest())

    @property
    def rows(self) -> int:
        """Rows of all splits."""
        return sum(split.rows for split in self.splits.values())

    @property
    def val_rule(self) -> str:
        """How ingest made val, for people; "" if the source had a val split."""
        if self.val_share >= 1:
            return "every image of the source"
        return f"{self.val_share:.3g} of each class, held out by a hash of the keys" if self.val_share else ""

    def split(self, name: str) -> Split:
        """Returns a split. Raises DatasetError, with the names of the splits, if there is none of this name."""
        if name not in self.splits:
            raise DatasetError(f"split {name!r} isn't in data set {self.name!r}; it holds {', '.join(self.splits)}")
        return self.splits[name]

    @property
    def resolved(self) -> "Manifest":
        """The manifest with whole URIs of the shards and prefixes of their keys, if it is a mixture; else itself."""
        if not self.sources:
            return self
        splits = {}
        for name, split in self.splits.items():
            owners = [each for each in self.sources.items() for _ in range(each[1].shards.get(name, 0))]
            shards = [_of_source(*each) for each in zip(split.shards, owners, strict=True)]
            splits[name] = replace(split, shards=tuple(shards))
        return replace(self, splits=splits)

    def source_row_groups(self, split: str) -> dict[str, int]:
        """Returns the number of row groups of each source of a mixture in a split, in their order."""
        shards = iter(self.split(split).shards)
        return {
            name: sum(len(next(shards).row_group_rows) for _ in range(source.shards.get(split, 0)))
            for name, source in self.sources.items()
        }

    def to_json(self) -> bytes:
        """Returns the content of `manifest.json`."""
        return json.dumps(self._values(), indent=1).encode() + b"\n"

    def _values(self) -> dict[str, Any]:
        values = asdict(self)
        if not self.val_share:
            del values["val_share"]  # manifests from before this field keep their bytes and digests
        if not self.sources:
            del values["sources"]
        for split in values["splits"].values():
            for shard in split["shards"]:
                del shard["key_prefix"]
        return values


def _of_source(shard: Shard, owner: tuple[str, Source]) -> Shard:
    name, source = owner
    path, provenance = files.join(source.uri, shard.path), files.join(source.uri, shard.provenance_path)
    return replace(shard, path=path, provenance_path=provenance, key_prefix=f"{name}/")


class _Version(msgspec.Struct):
    """The field of a manifest that is read first: the others may be different in another version."""

    schema_version: int


def parse(data: bytes, uri: str) -> Manifest:
    """Returns the manifest in `data`. Raises DatasetError if it is damaged, edited or of another schema."""
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise DatasetError(f"{uri}: manifest schema {version}, this version reads {SCHEMA_VERSION}; ingest again")
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:  # of JSON, or of a field that is missing or has another type
        raise DatasetError(f"{uri}: not a manifest of this project ({error}); ingest again") from error
    if manifest.digest != manifest.computed_digest():
        raise DatasetError(
            f"{uri}: the manifest doesn't match its own digest; it was edited or damaged: delete the folder and ingest "
            "again"
        )
    return manifest.resolved


def parse_shard(values: dict[str, Any]) -> Shard:
    """Returns the shard that a manifest's JSON describes by `values`."""
    return msgspec.convert(values, Shard)


def is_dataset(uri: str) -> bool:
    """Whether a finished data set lies at `uri`."""
    return files.exists(files.join(uri, MANIFEST_NAME))


def load(uri: str) -> Manifest:
    """Returns the manifest of the data set at `uri`. Raises DatasetError if there is none."""
    place = files.join(uri, MANIFEST_NAME)
    if not files.exists(place):
        raise DatasetError(
            f"{uri}: no {MANIFEST_NAME}, so no finished data set; ingest the images first (jobs/ingest.py)"
        )
    return parse(files.read_bytes(place), place)
