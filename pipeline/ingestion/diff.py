"""What differs between two versions of a data set: rows by key, label and the SHA-256 of their source files."""

from dataclasses import dataclass

from pipeline.dataset import manifest
from pipeline.dataset.parquet import read_provenance


@dataclass(frozen=True)
class Changes:
    """`SPLIT/KEY` of the rows, sorted.

    content_changed: the same key and label, other bytes. classes: "+NAME" and "-NAME" for new ones and lost ones.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    relabelled: tuple[str, ...]
    content_changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    classes: tuple[str, ...]

    def by_kind(self) -> dict[str, tuple[str, ...]]:
        """Returns the rows of each kind of change."""
        kinds = ("added", "removed", "relabelled", "content_changed", "unchanged")
        return {kind: getattr(self, kind) for kind in kinds}


def compare(old: str, new: str) -> Changes:
    """Returns what differs between the data sets at two absolute URIs. Raises DatasetError if one isn't there.

    Labels are compared by the names of their classes, for a new class shifts the numbers of others.
    """
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


def _rows(uri: str) -> dict[str, tuple[str, bytes]]:
    data = manifest.load(uri)
    table = read_provenance(uri, data, ["key", "label", "source_sha256"])
    columns = (table[name].to_pylist() for name in ("split", "key", "label", "source_sha256"))
    rows = zip(*columns, strict=True)
    # A file name may begin with its split, as in class folders.
    return {
        key if key.startswith(f"{split}/") else f"{split}/{key}": (data.classes[label], sha)
        for split, key, label, sha in rows
    }
