"""The part of a mixture that is a version which was dropped: the mixture alone still says which rows that has."""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from pipeline.core.errors import DatasetError
from pipeline.dataset.manifest import (
    SCHEMA_VERSION,
    VERSION_SCHEMA_VERSION,
    Manifest,
    Shard,
    Source,
    Split,
    is_dataset,
    load_stored,
)
from pipeline.dataset.parquet import read_split_provenance
from pipeline.dataset.records import Rows
from pipeline.ingestion.shard_task import count_repairs
from pipeline.storage import files
from pipeline.versions.family import Member


def is_there(source: Source) -> bool:
    """Whether a data set of a mixture is at its place still, and not dropped or another by now."""
    return is_dataset(source.uri) and load_stored(source.uri).digest == source.digest


def dropped_part(mixture: Member, name: str) -> Member:
    """Returns a data set of a mixture, which was dropped, as the version that it was: with the rows of the mixture.

    The first of several has the refused files of the mixture that none of the data sets has which are there. Raises
    DatasetError, with what to do, if a file is missing.
    """
    data, source = mixture.manifest, mixture.manifest.sources[name]
    splits, repaired = {}, Counter[str]()
    for split in data.splits:
        stored, resolved = (_shards_of(each, name, split) for each in (data, data.resolved))
        if stored:
            _check_files(mixture, source, resolved)
            table = read_split_provenance(mixture.uri, Split(0, (), resolved), ["label", "repair"])
            repaired.update(count_repairs(table["repair"]))
            labels = table["label"].to_numpy()
            per_class = np.bincount(labels, minlength=len(data.classes)).tolist()
            splits[split] = Split(len(labels), tuple(per_class), stored)
    there = {each: other for each, other in data.sources.items() if is_there(other)}
    others = [load_stored(each.uri).quarantined for each in there.values()]
    first = next(each for each in data.sources if each not in there)
    leaked = {
        split: tuple(key.removeprefix(f"{name}/") for key in keys if key.startswith(f"{name}/"))
        for split, keys in data.leaked.items()
    }
    part = Manifest(
        files.basename(source.uri),
        data.classes,
        data.plan_seed,
        splits,
        quarantined=_without(data.quarantined, others) if name == first else {},
        repaired=dict(sorted(repaired.items())),
        leaked={split: keys for split, keys in leaked.items() if keys},
        version=source.version,
        digest=source.digest,
        schema_version=SCHEMA_VERSION if source.version is None else VERSION_SCHEMA_VERSION,
    )
    return Member(part.name, source.uri.rstrip("/"), part)


def without_lost(part: Member, gone: Mapping[str, Rows]) -> dict[str, tuple[str, ...]]:
    """Returns `Manifest.leaked` of a part without the rows `gone`, {split: rows}."""
    leaked = {}
    for split, keys in part.manifest.leaked.items():
        every = read_split_provenance(part.uri, part.manifest.resolved.splits[split], ["key"])["key"]
        lost = set(every.take(gone.get(split, np.empty(0, np.int64))).to_pylist())
        leaked[split] = tuple(key for key in keys if key not in lost)
    return {split: keys for split, keys in leaked.items() if keys}


def _shards_of(data: Manifest, name: str, split: str) -> tuple[Shard, ...]:
    """Returns the shards of one data set in a split of a mixture."""
    first = 0
    for each, source in data.sources.items():
        count = source.shards.get(split, 0)
        if each == name:
            return data.splits[split].shards[first : first + count]
        first += count
    return ()


def _check_files(mixture: Member, source: Source, shards: Iterable[Shard]) -> None:
    for shard in shards:
        edits = shard.edits and [each.path for each in (shard.edits.deletions, shard.edits.corrections) if each]
        for path in (shard.path, shard.provenance_path, *(edits or ())):
            place = files.resolve(mixture.uri, path)
            if not files.exists(place):
                raise DatasetError(
                    f"{mixture.uri}: is a mixture with {source.uri}, which was dropped, and {place} is missing, so it "
                    "can't be made anew; nothing was removed: drop the mixture (versions drop), run the same command "
                    "again, then mix what there is"
                )


def _without(total: dict[str, int], parts: Iterable[dict[str, int]]) -> dict[str, int]:
    left = Counter(total)
    for part in parts:
        left.subtract(part)
    return dict(+left)
