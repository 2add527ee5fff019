"""The files of models in use, below a registry: what they answered, late labels, reviews and what was told of them.

    live/traffic/FIRST/SECOND/ID.parquet  answers of two versions for the same images; SECOND is `none` for one alone
    live/labels/N-HASH.csv                labels as they came, N counting from 1
    live/reviews/ID.json                  a decision with all its numbers
    live/decided/ALIAS-N                  ID of the decision on the alias's move N: of several processes one writes it
    live/decided/candidate-superseded-N   ID of the drop that counts in place of a promotion that wasn't carried out
    live/told/ID                          that others were told of it
    live/told/ID.refused                  that they couldn't be told of it at first

No file is ever changed. The ID of a record follows from what was predicted with which versions, that of a review from
all that it rests on: who repeats a step after a kill writes the same file, or finds it.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import RegistryError
from pipeline.retraining.alias_file import encode
from pipeline.storage import files

ALONE = "none"  # stands for a second version
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # the image's name below the input
        ("first", pa.string()),  # class by the first version, whose answers were given out; null without one
        ("second", pa.string()),
        ("first_seconds", pa.float32()),  # of the network, for an image; null if not measured
        ("second_seconds", pa.float32()),
        ("error", pa.string()),  # why the image can't be used by any model, or null
        ("content", pa.string()),  # hash of the image's bytes; null where it isn't known, as in records of before
    ]
)
_META = b"image_pipeline.live"
REFUSED = ".refused"  # ends the name of a file in `live/told`
_LABELS = re.compile(r"^(\d{6})-([0-9a-f]{16})\.csv$")


@dataclass(frozen=True)
class Traffic:
    """Head of a record of what one or two versions answered."""

    first: str  # ID of the version whose answers were given out
    second: str  # ID of the version in its shadow, or ALONE
    time: float  # seconds since the epoch
    first_failure: str = ""  # why the first version gave no answers
    second_failure: str = ""


def write_traffic(registry: str, name: str, head: Traffic, parts: Iterator[pa.Table]) -> str:
    """Writes a record of tables with SCHEMA unless it is there, and returns its URI. name: ID of the record."""
    place, schema = traffic_uri(registry, head.first, head.second, name), _with_head(head)
    out = io.BytesIO()
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part.cast(SCHEMA).replace_schema_metadata(schema.metadata))
    files.write_once(place, out.getvalue())
    return place


def _with_head(head: Traffic) -> pa.Schema:
    return SCHEMA.with_metadata({_META: json.dumps(vars(head))})


def traffic_uri(registry: str, first: str, second: str, name: str) -> str:
    """Returns the URI of a record."""
    return files.join(registry, "live", "traffic", first, second, f"{name}.parquet")


def read_traffic(uri: str) -> tuple[Traffic, pa.Table]:
    """Returns a record. Raises RegistryError if it is damaged."""
    try:
        table = pq.read_table(pa.BufferReader(files.read_bytes(uri)))
        head, names = Traffic(**json.loads(table.schema.metadata[_META])), table.schema.names
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise RegistryError(f"{uri}: no record of predictions, or damaged; remove it") from error
    if names == SCHEMA.names[:-1]:  # written before records said which image a key named
        table = table.append_column(SCHEMA.field("content"), pa.nulls(table.num_rows, pa.string()))
    elif names != SCHEMA.names:
        raise RegistryError(f"{uri}: has other columns than a record of predictions; remove it")
    return head, table


def traffic_uris(registry: str) -> list[str]:
    """Returns the sorted URIs of all records, by one listing."""
    folder = files.join(registry, "live", "traffic")
    return sorted(files.join(folder, name) for name, _ in files.list_files(folder) if name.endswith(".parquet"))


def add_labels(registry: str, data: bytes) -> str:
    """Keeps the bytes of a CSV of labels, and returns the URI. Later files go before earlier ones.

    The newest file isn't kept twice. An earlier one is: it may take back a correction that came after it.
    """
    digest = hashlib.sha256(data).hexdigest()[:16]
    known = label_uris(registry)
    if known and known[-1].split("?")[0].endswith(f"-{digest}.csv"):
        return known[-1]
    last = int(files.basename(known[-1])[:6]) if known else 0
    place = files.join(registry, "live", "labels", f"{last + 1:06d}-{digest}.csv")
    files.write_once(place, data)
    return place


def label_uris(registry: str) -> list[str]:
    """Returns the URIs of the files of labels, oldest first."""
    folder = files.join(registry, "live", "labels")
    return [
        files.join(folder, name) for name in sorted(name for name, _ in files.list_files(folder)) if _LABELS.match(name)
    ]


def is_labels_intact(uri: str) -> bool:
    """Whether a file of labels has the content that its name says."""
    found = _LABELS.match(files.basename(uri))
    return bool(found and hashlib.sha256(files.read_bytes(uri)).hexdigest()[:16] == found[2])


def review_id(content: dict[str, Any]) -> str:
    """Returns the ID of a review: the first 12 hex digits of the SHA-256 of its content as canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def write_review(registry: str, content: dict[str, Any]) -> str:
    """Writes a review unless it is there, and returns its ID."""
    identifier = review_id(content)
    files.write_once(review_uri(registry, identifier), encode(content))
    return identifier


def review_uri(registry: str, identifier: str) -> str:
    """Returns the URI of a review."""
    return files.join(registry, "live", "reviews", f"{identifier}.json")


def decide_once(registry: str, alias: str, number: int, identifier: str) -> str:
    """Records the review that decides on an alias's move `number`, and returns its ID: the caller's or an earlier one.

    Of several processes with different decisions one succeeds; the others, and whoever comes after a kill, carry out
    that one's.
    """
    files.write_once(_decided_uri(registry, alias, number), identifier.encode())
    return decided(registry, alias, number) or identifier


def decided(registry: str, alias: str, number: int) -> str | None:
    """Returns the ID of the review that decides on an alias's move, None if there is none."""
    place = _decided_uri(registry, alias, number)
    return bytes(files.read_bytes(place)).decode() if files.exists(place) else None


def _decided_uri(registry: str, alias: str, number: int) -> str:
    return files.join(registry, "live", "decided", f"{alias}-{number:06d}")


def read_review(registry: str, identifier: str) -> dict[str, Any]:
    """Returns the content of a review. Raises RegistryError if it is missing or has changed."""
    place = review_uri(registry, identifier)
    if not files.exists(place):
        raise RegistryError(f"{place}: the review is missing; the history refers to it")
    content: dict[str, Any] = files.read_json(place)
    if review_id(content) != identifier:
        raise RegistryError(f"{place}: the review has changed (its ID would be {review_id(content)})")
    return content


def told_ids(registry: str) -> set[str]:
    """Returns the IDs of the reviews that others were told of, and those with REFUSED of what they refused first."""
    return {name for name, _ in files.list_files(files.join(registry, "live", "told"))}


def write_told(registry: str, identifier: str) -> None:
    """Records that others were told of a review. identifier: its ID, with REFUSED if they couldn't be told yet."""
    files.write_once(files.join(registry, "live", "told", identifier), b"\n")
