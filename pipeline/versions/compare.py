"""Compares two versions of a data set by keys, labels and the SHA-256 of the source files."""

import os
from dataclasses import dataclass

from pipeline.dataset import manifest
from pipeline.dataset.parquet import read_provenance
from pipeline.storage import files


@dataclass(frozen=True)
class Changes:
    """Differences between two data sets. Rows are named SPLIT/KEY, sorted."""

    added: tuple[str, ...]
    """Rows whose key is new."""

    removed: tuple[str, ...]
    """Rows whose key is gone."""

    relabelled: tuple[str, ...]
    """Rows of another class than before."""

    content_changed: tuple[str, ...]
    """Rows of the same class whose source file has other bytes."""

    unchanged: tuple[str, ...]
    """All other rows of both data sets."""

    classes: tuple[str, ...]
    """"+NAME" for each new class, "-NAME" for each class that is gone."""

    def by_kind(self) -> dict[str, tuple[str, ...]]:
        """Returns the rows for each kind of change."""
        kinds = ("added", "removed", "relabelled", "content_changed", "unchanged")
        return {kind: getattr(self, kind) for kind in kinds}


def compare_datasets(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> Changes:
    """Returns the differences between the data sets at two URIs. Raises DatasetError if there is none at one of them.

    Labels are compared by class names: a new class changes the numbers of the classes after it.
    """
    old, new = files.absolute(os.fspath(old)), files.absolute(os.fspath(new))
    before, after = _rows(old), _rows(new)
    common = before.keys() & after.keys()
    old_classes, new_classes = set(manifest.load(old).classes), set(manifest.load(new).classes)
    relabelled = {key for key in common if before[key][0] != after[key][0]}
    changed = {key for key in common if before[key][1] != after[key][1]} - relabelled
    return Changes(
        added=tuple(sorted(after.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - after.keys())),
        relabelled=tuple(sorted(relabelled)),
        content_changed=tuple(sorted(changed)),
        unchanged=tuple(sorted(common - relabelled - changed)),
        classes=(
            *(f"+{name}" for name in sorted(new_classes - old_classes)),
            *(f"-{name}" for name in sorted(old_classes - new_classes)),
        ),
    )


def row_name(split: str, key: str) -> str:
    """Returns SPLIT/KEY, the name of a row; keys of class folders begin with their split already."""
    return key if key.startswith(f"{split}/") else f"{split}/{key}"


def _rows(uri: str) -> dict[str, tuple[str, bytes]]:
    """Returns {SPLIT/KEY: (class name, SHA-256 of the source file)}."""
    data = manifest.load(uri)
    table = read_provenance(uri, data, ["key", "label", "source_sha256"])
    columns = (table[name].to_pylist() for name in ("split", "key", "label", "source_sha256"))
    rows = zip(*columns, strict=True)
    return {row_name(split, key): (data.classes[label], sha) for split, key, label, sha in rows}
