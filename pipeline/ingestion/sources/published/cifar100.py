"""CIFAR-100 as published (https://www.cs.toronto.edu/~kriz/cifar.html): the binary archive and the Python archive.

A binary record is the coarse label, the fine label, and 3,072 bytes as in CIFAR-10. Classes are the 100 fine labels, in
the order of the archive's own list of names. Both archives give the same data set.
"""

import re

from pipeline.core.errors import SourceError
from pipeline.ingestion.sources import cifar
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.members import Listing, Member
from pipeline.storage import files

BINARY_MD5 = "03b5dce01913d631647c71ecec9e9cb8"
PYTHON_MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
NUM_CLASSES = 100

_BINARY = re.compile(r"(?:^|/)(train|test)\.bin$")
_PYTHON = re.compile(r"(?:^|/)(train|test)$")
_BINARY_NAMES, _PYTHON_NAMES = "fine_label_names.txt", "meta"


def matches_binary(listing: Listing) -> bool:
    """Whether the source holds `train.bin` and the list of fine labels."""
    return _find(listing, _BINARY_NAMES) is not None and any(map(_BINARY.search, listing.names))


def matches_python(listing: Listing) -> bool:
    """Whether the source holds the pickles `meta`, `train` and `test`, without suffixes."""
    return _find(listing, _PYTHON_NAMES) is not None and any(map(_PYTHON.search, listing.names))


def build_binary_index(listing: Listing, name: str, md5: str | None) -> Index:
    """Returns the index of the binary archive. Raises SourceError if it is damaged or has another MD5.

    md5: the expected MD5 (hex), "any" for no check, None for that of the published archive.
    """
    batches = {match.group(1): listing.member(row) for row, match in _batches(listing, _BINARY)}
    text = listing.member(_find(listing, _BINARY_NAMES) or 0).read().decode("utf-8", "replace")
    index = _index(listing, name, "cifar100-binary", batches, text.split(), label_bytes=2)
    cifar.check_md5(listing, md5 or BINARY_MD5)
    return index


def build_python_index(listing: Listing, name: str, md5: str | None, spool: str) -> Index:
    """Returns the index of the Python archive, and writes its batches to `spool` as binary records.

    md5, errors: see `build_binary_index`.
    """
    batches = {}
    for row, match in _batches(listing, _PYTHON):
        each = listing.names[row]
        values = cifar.unpickled(listing.member(row).read(), f"{listing.uri}: {each}")
        records = cifar.records(values, f"{listing.uri}: {each}", "fine_labels", NUM_CLASSES)
        uri = files.join(spool, f"cifar100-{match.group(1)}.bin")
        files.write_bytes(uri, records)
        batches[match.group(1)] = Member(each, uri, 0, len(records))
    meta = listing.member(_find(listing, _PYTHON_NAMES) or 0)
    names = cifar.unpickled(meta.read(), f"{listing.uri}: {meta.name}").get("fine_label_names")
    classes = [each.decode() if isinstance(each, bytes) else str(each) for each in names or ()]
    index = _index(listing, name, "cifar100-python", batches, classes)
    cifar.check_md5(listing, md5 or PYTHON_MD5)
    return index


def _batches(listing: Listing, pattern: re.Pattern[str]) -> list[tuple[int, re.Match[str]]]:
    found = ((row, pattern.search(each)) for row, each in enumerate(listing.names))
    return [(row, match) for row, match in found if match]


def _find(listing: Listing, base: str) -> int | None:
    return next((row for row, each in enumerate(listing.names) if each.rsplit("/", 1)[-1] == base), None)


def _index(
    listing: Listing, name: str, layout: str, batches: dict[str, Member], classes: list[str], label_bytes: int = 1
) -> Index:
    """Returns the index of binary records whose last label byte is the class. Raises SourceError."""
    if len(set(classes)) != NUM_CLASSES:
        raise SourceError(
            f"{listing.uri}: {len(set(classes))} names of fine labels, CIFAR-100 has {NUM_CLASSES}; download it again"
        )
    tables = {}
    for split, batch in (("train", "train"), ("val", "test")):
        if batch not in batches:
            raise SourceError(f"{name}: the archive lacks its {batch} batch; download it again")
        tables[split] = cifar.record_table({batch: batches[batch]}, NUM_CLASSES, label_bytes)
    others = len(listing) - len(batches)
    ignored = ({"other files": others} if others else {}) | listing.ignored
    notes = ("classes are the 100 fine labels", "no val split: test serves as val")
    return Index(name, layout, tuple(classes), "cifar", tables, listing.fingerprint, ignored=ignored, notes=notes)
