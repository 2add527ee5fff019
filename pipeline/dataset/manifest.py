"""The manifest of a data set: `manifest.json`, written last, so that an unfinished data set has none.

This module also has the names of `records`, so that a reader needs `manifest` alone.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from pipeline.core.errors import DatasetError
from pipeline.dataset.records import Base, EditFile, Shard, Source, Split, Version, of_source, of_version
from pipeline.storage import files

__all__ = [
    "MANIFEST_NAME",
    "VERSION_SCHEMA_VERSION",
    "Base",
    "EditFile",
    "Manifest",
    "Shard",
    "Source",
    "Split",
    "Version",
    "is_dataset",
    "load",
    "load_stored",
    "parse",
    "parse_shard",
    "parse_stored",
]

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 2
VERSION_SCHEMA_VERSION = 3  # of manifests with a `version`, which earlier programs would read without its edits


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

    version: Version | None = None
    """The data sets that this one is a version of, and the rows that it changes. None, and left out of the JSON and the
    digest, if it stands alone."""

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
        for each in (values, *values.get("sources", {}).values()):
            for base in each.get("version", {}).get("bases", {}).values():
                base["uri"] = ""
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
        """The manifest with the places, key prefixes and edits of shards that a mixture or a version refers to."""
        if not self.sources:
            return self if self.version is None else replace(self, splits=self._splits_of_version(self.version))
        splits = {}
        for name, split in self.splits.items():
            owners = [each for each in self.sources.items() for _ in range(each[1].shards.get(name, 0))]
            shards = [of_source(shard, *owner, self.classes) for shard, owner in zip(split.shards, owners, strict=True)]
            splits[name] = replace(split, shards=tuple(shards))
        return replace(self, splits=splits)

    def _splits_of_version(self, version: Version) -> dict[str, Split]:
        return {
            name: replace(split, shards=tuple(of_version(shard, version, self.classes) for shard in split.shards))
            for name, split in self.splits.items()
        }

    def source_row_groups(self, split: str) -> dict[str, int]:
        """Returns the number of row groups of each source of a mixture in a split, in their order."""
        shards = iter(self.split(split).shards)
        return {
            name: sum(int(np.count_nonzero(next(shards).live_group_rows)) for _ in range(source.shards.get(split, 0)))
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
        for each in (values, *values.get("sources", {}).values()):
            if each["version"] is None:
                del each["version"]
        for split in values["splits"].values():
            for shard in split["shards"]:
                del shard["key_prefix"], shard["edits"]
                for name in ("base", "deleted"):
                    if not shard[name]:
                        del shard[name]
        return values


class _Schema(msgspec.Struct):
    """The field of a manifest that is read first: the others may be different in another version."""

    schema_version: int


def parse(data: bytes, uri: str) -> Manifest:
    """Returns the manifest in `data`, resolved. Raises DatasetError if it is damaged, edited or of another schema."""
    return parse_stored(data, uri).resolved


def parse_stored(data: bytes, uri: str) -> Manifest:
    """Returns the manifest in `data` with the fields that it has in the file. Raises what `parse` raises."""
    try:
        version = msgspec.json.decode(data, type=_Schema).schema_version
        if version not in (SCHEMA_VERSION, VERSION_SCHEMA_VERSION):
            known = f"{SCHEMA_VERSION} and {VERSION_SCHEMA_VERSION}"
            raise DatasetError(f"{uri}: manifest schema {version}, this program reads {known}; ingest again")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # no JSON, or a field of another type
        raise DatasetError(f"{uri}: not a manifest of this project ({error}); ingest again") from error
    if manifest.digest != manifest.computed_digest():
        raise DatasetError(
            f"{uri}: the manifest doesn't match its own digest; it was edited or damaged: delete the folder and ingest "
            "again"
        )
    return manifest


def parse_shard(values: dict[str, Any]) -> Shard:
    """Returns the shard that a manifest's JSON describes by `values`."""
    return msgspec.convert(values, Shard)


def is_dataset(uri: str) -> bool:
    """Whether a finished data set lies at `uri`."""
    return files.exists(files.join(uri, MANIFEST_NAME))


def load(uri: str) -> Manifest:
    """Returns the manifest of the data set at `uri`. Raises DatasetError if there is none."""
    return load_stored(uri).resolved


def load_stored(uri: str) -> Manifest:
    """Returns the manifest of the data set at `uri` as it is in the file, to be copied from. Raises DatasetError."""
    place = files.join(uri, MANIFEST_NAME)
    if not files.exists(place):
        raise DatasetError(
            f"{uri}: no {MANIFEST_NAME}, so no finished data set; ingest the images first (jobs/ingest.py)"
        )
    return parse_stored(files.read_bytes(place), place)
