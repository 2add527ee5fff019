"""Mixtures: data sets that are made of several others, whose shards stay where they are."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from pipeline.core.errors import DatasetError
from pipeline.dataset.manifest import (
    MANIFEST_NAME,
    VERSION_SCHEMA_VERSION,
    Manifest,
    Source,
    Split,
    is_dataset,
    load,
    load_stored,
)
from pipeline.dataset.version import LEASE, check_not_rewritten, folder_of_versions
from pipeline.storage import files, lease
from pipeline.storage.places import remove_if_empty

_NAME = re.compile(r"[A-Za-z_][\w.-]*")


def mix(sources: Mapping[str, str], out: str) -> Manifest:
    """Writes a data set that holds all rows of several others, one after the other, and returns its manifest.

    sources: {name: path or URI}; the names are what `sampling.shares` and the column `source` say. No image is copied,
    so the sources must stay. Each split is made of those of this name. Raises DatasetError if the sources have
    different classes, `out` holds another data set, or versions beside `out` or a source are being dropped or rid of
    images.
    """
    if len(sources) < 2:
        raise DatasetError(f"a mixture needs two data sets or more; {len(sources)} given")
    for name in sources:
        if not _NAME.fullmatch(name):
            raise DatasetError(f"{name!r} can be no source's name; take letters, digits, _, - and .")
    if len({files.is_local(files.absolute(uri)) for uri in sources.values()}) > 1:
        raise DatasetError("some sources are local and some in object storage; copy them to one kind of place")
    out = files.absolute(out).rstrip("/")
    folders = dict.fromkeys(folder_of_versions(files.absolute(uri).rstrip("/")) for uri in (out, *sources.values()))
    try:
        with ExitStack() as held:
            for folder in folders:
                place = files.join(folder, *LEASE)
                if folder == folder_of_versions(out) or files.exists(place):  # other folders may be read-only
                    held.enter_context(lease.hold_lease(place, folder))
                check_not_rewritten(folder)
            mixed = _mixed(sources, out)
            files.write_bytes(files.join(out, MANIFEST_NAME), mixed.to_json())
    finally:
        remove_if_empty(files.join(folder_of_versions(out), LEASE[0]))
    return mixed.resolved


def _mixed(sources: Mapping[str, str], out: str) -> Manifest:
    """Returns the manifest of a mixture, as it will be in the file. Raises DatasetError."""
    parts = {name: load_stored(files.absolute(uri)) for name, uri in sources.items()}
    first, one = next(iter(parts.items()))
    for name, part in parts.items():
        if part.sources:
            raise DatasetError(f"{name} is a mixture itself; name the data sets that it is made of")
        if part.classes != one.classes:
            raise DatasetError(_other_classes(first, one.classes, name, part.classes))
    mixed = mixture_of(files.basename(out), {name: files.absolute(uri) for name, uri in sources.items()}, parts)
    if is_dataset(out) and load(out).digest != mixed.digest:
        raise DatasetError(f"{out}: holds another data set; give another folder, or delete it")
    return mixed


def mixture_of(name: str, uris: dict[str, str], parts: dict[str, Manifest]) -> Manifest:
    """Returns the manifest of a mixture. uris, parts: of each of its data sets; `parts` as they are in the files."""
    one = next(iter(parts.values()))
    names = list(dict.fromkeys(split for part in parts.values() for split in part.splits))
    digests = "".join(part.digest for part in parts.values())
    totals: list[Counter[str]] = [Counter(), Counter()]
    for part in parts.values():
        totals[0].update(part.quarantined)
        totals[1].update(part.repaired)
    leaked: dict[str, tuple[str, ...]] = {}
    for source, part in parts.items():
        for split, keys in part.leaked.items():
            leaked[split] = (*leaked.get(split, ()), *(f"{source}/{key}" for key in keys))
    mixed = Manifest(
        name,
        one.classes,
        one.plan_seed,
        {split: _joined(split, list(parts.values())) for split in names},
        hashlib.sha256(digests.encode()).hexdigest(),
        dict(totals[0]),
        dict(totals[1]),
        leaked,
        sources={
            name: Source(uris[name], part.digest, _num_shards(part), part.version) for name, part in parts.items()
        },
    )
    if any(part.version for part in parts.values()):
        mixed = replace(mixed, schema_version=VERSION_SCHEMA_VERSION)
    return mixed.with_digest()


def _num_shards(part: Manifest) -> dict[str, int]:
    return {name: len(split.shards) for name, split in part.splits.items()}


def _joined(name: str, parts: list[Manifest]) -> Split:
    splits = [part.splits[name] for part in parts if name in part.splits]
    per_class = tuple(map(sum, zip(*(split.rows_per_class for split in splits), strict=True)))
    shards = tuple(shard for split in splits for shard in split.shards)
    return Split(sum(split.rows for split in splits), per_class, shards)


def _other_classes(first: str, classes: tuple[str, ...], name: str, others: tuple[str, ...]) -> str:
    """Returns the message about two data sets whose classes differ: which do, and what can be done."""
    missing, more = sorted({*classes} - {*others}), sorted({*others} - {*classes})
    said = [f"{name} lacks {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"] if missing else []
    said += [f"{first} lacks {', '.join(more[:3])}{' ...' if len(more) > 3 else ''}"] if more else []
    said = said or [f"their order differs: {', '.join(classes[:3])} ... and {', '.join(others[:3])} ..."]
    return (
        f"{first} and {name} have different classes ({'; '.join(said)}); a label must mean the same in all: ingest "
        "them from folders of the same names"
    )
