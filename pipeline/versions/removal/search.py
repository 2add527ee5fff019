"""Searches a folder of versions for what is left of removed images."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster.ray_tasks import map_tables
from pipeline.core.errors import DatasetError
from pipeline.core.progress import Bytes, Progress
from pipeline.core.shares import counted
from pipeline.dataset.manifest import Shard
from pipeline.dataset.parquet import stored_provenance
from pipeline.dataset.records import Rows
from pipeline.dataset.version import REWRITING
from pipeline.storage import files
from pipeline.versions.compare import row_name
from pipeline.versions.family import Member, read_family
from pipeline.versions.removal.find import split_of
from pipeline.versions.removal.journal import Journal
from pipeline.versions.removal.traces import TRACE_BYTES, TRACE_SCHEMA, SearchedFile, TraceSearch, image_ranges, rows_at

_NAMED = 3


def search(folder: str, journal: Journal, progress: Progress) -> tuple[int, int]:
    """Searches every file in a folder of versions for the traces that the journal keeps.

    Returns (files searched, their bytes). Raises DatasetError, and names what was found, unless nothing was. Headers of
    a removed image (tables that every encoder writes, the camera's name) may be part of images that stay; its pixels
    may not.
    """
    images, derived = journal.traces("images"), journal.traces("derived")
    members = read_family(folder)
    shards = {files.join(m.uri, s.path): files.join(m.uri, s.provenance_path) for m in members for s in m.own_shards}
    provenance, own = set(shards.values()), "/".join([*REWRITING[:-1], ""])  # the journal's folder
    names = [(name, size) for name, size in files.list_files(folder) if not name.startswith(own)]
    places = [(files.join(folder, name), size) for name, size in names]
    every = [SearchedFile(uri, size, shards.get(uri, "")) for uri, size in places]
    # The thumbnails in the provenance are of images that stay; those of look-alikes may be equal.
    groups = (
        (TraceSearch(images), [each for each in every if each.uri in provenance]),
        (TraceSearch([*images, *derived]), [each for each in every if each.uri not in provenance]),
    )
    total, done = sum(each.size for each in every), 0
    tables = [TRACE_SCHEMA.empty_table()]
    for task, some in groups:
        sizes = np.cumsum([0, *(each.size for each in some)])
        tables += map_tables(task, some, TRACE_SCHEMA, partial(_report, progress, total, done + sizes), computes=True)
        done += int(sizes[-1])
    _check(folder, members, pa.concat_tables(tables))
    return len(every), total


def _report(progress: Progress, total: int, ends: Rows, count: int) -> None:
    progress("search", Bytes(ends[count]), Bytes(total))


def _check(folder: str, members: Sequence[Member], traces: pa.Table) -> None:
    """Raises DatasetError, and names files and images, unless all traces are headers of images that stay."""
    shards = {files.join(m.uri, shard.path): (m, shard) for m in members for shard in m.own_shards}
    alike, left = Counter[str](), Counter[str]()
    for uri in traces["file"].unique().to_pylist():
        mine = traces.filter(pc.equal(traces["file"], uri))
        of_pixels = mine["of_pixels"].to_numpy()
        if uri not in shards:
            left[uri] = int(of_pixels.sum())  # a file that is no shard has headers in common with any image
            continue
        names = _names_at(*shards[uri], mine["offset"].to_numpy())
        alike.update(name for name, pixels in zip(names, of_pixels.tolist(), strict=True) if name and pixels)
        left[uri] = sum(not name for name in names)
    left = +left
    what = [counted(TRACE_BYTES, "byte") + " of the removed images"]
    if left:
        what.append(f"are left in {_some(left)}: delete {'it' if len(left) == 1 else 'them'}")
    if alike:
        joined = " and " if left else ""
        what.append(f"{joined}are part of other images, {_some(alike)}: remove them, too, if they are the same picture")
    if left or alike:
        raise DatasetError(
            f"{folder}: the images are removed, but strings of {' '.join(what)}; then run the same command again, "
            "which searches again"
        )


def _names_at(member: Member, shard: Shard, offsets: Rows) -> list[str]:
    """Returns for each string at an offset of a shard the image that it lies in, SPLIT/KEY, or ""."""
    rows = rows_at(image_ranges(files.join(member.uri, shard.provenance_path)), offsets)
    keys = stored_provenance(member.uri, shard, ["key"])["key"].take(pa.array(rows.clip(min=0))).to_pylist()
    return [row_name(split_of(shard), key) if row >= 0 else "" for key, row in zip(keys, rows.tolist(), strict=True)]


def _some(counts: Counter[str]) -> str:
    names = list(counts)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
