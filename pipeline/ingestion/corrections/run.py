"""Makes a version of a data set that follows people's verdicts on its labels, without its source and new shards."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipeline.core.errors import DatasetError
from pipeline.core.progress import Progress, begin, silent
from pipeline.dataset.api import Dataset
from pipeline.dataset.manifest import VERSION_SCHEMA_VERSION, Manifest, load_stored
from pipeline.dataset.parquet import read_provenance
from pipeline.dataset.version import Changes, derive
from pipeline.ingestion.changes.onto import Parent, why_compact
from pipeline.ingestion.changes.state import read_state
from pipeline.ingestion.corrections.decide import VerdictCounts, decide
from pipeline.ingestion.corrections.verdict_file import read_verdicts
from pipeline.ingestion.publish import ParentPixels, publish_manifest, with_quality
from pipeline.ingestion.quarantine import read_quarantine, write_quarantine
from pipeline.ingestion.shard_task import count_repairs
from pipeline.ingestion.target import check_target, claim_target, record_plan
from pipeline.storage import files, lease

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corrected(Dataset):
    """A data set that was just corrected."""

    verdicts: VerdictCounts
    """What the verdicts have changed."""


def correct(
    verdicts: str | os.PathLike[str],
    onto: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: Progress = silent,
) -> Corrected:
    """Makes a version of a data set that follows people's verdicts on its labels, and returns it.

        data = correct("verdicts.csv", "data/photos", "data/photos-corrected")
        print(data.verdicts.relabelled, data.manifest.digest)

    verdicts: a CSV with the columns key and verdict (`keep`, `remove` or a class), and perhaps split and class, such as
    `label-problems.html` of an evaluation saves. onto: the data set. out: a new or empty folder beside it. The version
    refers to the shards of `onto`, which must stay. Rows that were corrected or kept are remembered as such, so that a
    later `ingest(..., onto=out)` leaves them as they are and evaluations don't list them again.

    The same verdicts give the same data set, whoever made them and when. Raises SourceError, with line and remedy, for
    a file or a verdict that can't be used, and DatasetError if `onto` is a mixture or `out` is in use.
    """
    file, parent = files.absolute(os.fspath(verdicts)), Parent(files.absolute(os.fspath(onto)).rstrip("/"))
    target = files.absolute(os.fspath(out)).rstrip("/")
    _check_no_mixture(parent.uri)
    parent.checked_settings(target, None)
    said = read_verdicts(file)
    check_target(target)
    with claim_target(target, progress) as held:
        begin(progress, f"correcting {parent.uri}")
        stored = load_stored(parent.uri)
        changes, counts = decide(parent.uri, stored.resolved, said, file)
        manifest = _write(target, parent.uri, stored, changes, held, progress)
    if reason := why_compact(manifest):
        _log.info("%s: `image-pipeline versions compact` makes a data set of its own, which is read faster", reason)
    return Corrected(target, manifest, counts)


def _check_no_mixture(uri: str) -> None:
    sources = load_stored(uri).sources
    if sources:
        names = ", ".join(f"{name} ({source.uri})" for name, source in sources.items())
        raise DatasetError(
            f"onto={uri}: is a mixture, whose data sets are corrected one by one, each by a file of its own: {names}; "
            "then mix again"
        )


def _write(
    out: str, parent: str, stored: Manifest, changes: Mapping[str, Changes], held: lease.Lease, progress: Progress
) -> Manifest:
    """Writes the version and returns its manifest."""
    tables = {split: [each.deleted.to_pydict(), each.corrected.to_pydict()] for split, each in sorted(changes.items())}
    plan = hashlib.sha256(json.dumps([stored.digest, tables]).encode()).hexdigest()
    record = {"plan": plan, "source": "verdicts of people", "settings": stored.settings, "onto": stored.digest}
    record_plan(out, record)
    derived = derive(parent, out, stored.classes, changes, {}, stored)
    write_quarantine(out, read_quarantine(parent))
    manifest = replace(
        stored, splits=derived.splits, version=derived.version, schema_version=VERSION_SCHEMA_VERSION, digest=""
    )
    repairs = read_provenance(out, manifest.resolved, ["repair"])["repair"]
    manifest = replace(manifest, repaired=dict(sorted(count_repairs(repairs).items())))
    pixels = ParentPixels.of(parent, stored, changes)
    manifest, histogram = with_quality(out, manifest, np.zeros(768, dtype=np.int64), pixels, progress)
    return publish_manifest(out, manifest, histogram, read_state(parent), held, pixels)
