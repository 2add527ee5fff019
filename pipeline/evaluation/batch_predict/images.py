"""Lists the images of folders, prefixes of a bucket, archives, files, or patterns such as `new/*.jpg`."""

import glob
import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress
from pipeline.core.shares import counted
from pipeline.evaluation.inputs import StrPath, absolute_uri
from pipeline.ingestion.sources.members import Listing, is_archive, list_members
from pipeline.ingestion.sources.recognise.contents import HEAD_BYTES, looks_like_image
from pipeline.ingestion.sources.recognise.file_kinds import is_image, is_known, kind_of
from pipeline.storage import files
from pipeline.storage.file_names import escaped, real_path
from pipeline.storage.listing import why_unreadable

_PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class FoundImages:
    """The images of an input.

    table: a row for each, with the columns name, object (URI), offset, length and error: why the file can't be read,
    null where nothing is known against it. skipped: numbers of other files, by kind: ".txt", or what systems leave
    behind.
    """

    table: pa.Table
    skipped: dict[str, int]


def input_uris(inputs: Sequence[StrPath]) -> list[str]:
    """Returns the absolute URIs of inputs.

    Of several, which a shell may have found by a pattern, a name that is there stays as it is: it may be a dangling
    link, or not UTF-8.
    """
    names = [os.fspath(each) for each in inputs]
    alone = len(names) == 1
    return [
        absolute_uri(name) if alone or "://" in name or not os.path.lexists(name) else escaped(os.path.abspath(name))
        for name in names
    ]


def find_images(inputs: Sequence[str], spool: str, progress: Progress) -> FoundImages:
    """Returns the images at absolute URIs, those that can't be read included.

    inputs: of each, a folder or a prefix with everything below it, an archive, one image, or a pattern of local paths.
    Of one input images are named by their place below it, of several by their place below the folder that all have in
    common. spool: an empty local folder for archives that must be unpacked; it has to stay until the images have been
    read. What a pattern matches, of ours or of a shell, is treated as what lies in a folder: no odd file ends the
    search. Raises SourceError if there are no images.
    """
    places = [place for uri in inputs for place in _matching(uri)]
    alone = places == list(inputs) and len(places) == 1
    parts = [
        (None if alone else _odd_file(place)) or _find(place, files.join(spool, str(number)), progress)
        for number, place in enumerate(places)
    ]
    skipped: Counter[str] = Counter()
    for part in parts:
        skipped.update(part.skipped)
    tables = [part.table for part in parts]
    if len(places) > 1:
        common = posixpath.commonpath([posixpath.dirname(place) for place in places])
        tables = [_renamed(part, posixpath.relpath(place, common)) for part, place in zip(tables, places, strict=True)]
    table = pa.concat_tables(tables).unify_dictionaries()
    if not table.num_rows:
        seen = f" among {counted(sum(skipped.values()), 'file')} ({_kinds(skipped)})" if skipped else ""
        raise SourceError(f"input={' '.join(inputs)}: no image{seen}; give images, in a folder or an archive")
    return FoundImages(table, dict(skipped.most_common()))


def images_of(listing: Listing) -> FoundImages:
    """Returns the images among listed files, by their names or, where these don't tell, by their first bytes."""
    rows, chosen = listing.image_rows, set(listing.image_rows)
    others = Counter(kind_of(name) for row, name in enumerate(listing.names) if row not in chosen)
    table = image_table(listing.names, listing.objects, listing.offsets, listing.lengths)
    table = table.take(pa.array(rows, pa.int64()))
    errors = pa.array([listing.unreadable.get(row) for row in rows], pa.string())
    skipped = others + Counter(listing.ignored)
    return FoundImages(table.set_column(4, "error", errors), dict(skipped.most_common()))


def image_table(names: Sequence[str], objects: Sequence[str], offsets: object, lengths: object) -> pa.Table:
    """Returns a table of images with the columns that `source_reader` reads by: where the bytes of each image are."""
    columns = {"name": names, "object": pa.array(objects, pa.string()).dictionary_encode()}
    errors = pa.nulls(len(names), pa.string())
    return pa.table({**columns, "offset": offsets, "length": lengths, "error": errors})


def _matching(uri: str) -> list[str]:
    """Returns the places that a pattern names, sorted, or `uri` itself."""
    if not _PATTERN & set(uri) or not files.is_local(uri) or files.kind(uri) != "missing":
        return [uri]
    found = sorted(escaped(place) for place in glob.glob(uri, recursive=True) if not _in_circle(os.path.dirname(place)))
    if not found:
        raise SourceError(f"input={uri}: no file matches; give existing files, a folder or an archive")
    return found


@lru_cache(maxsize=1024)
def _in_circle(folder: str) -> bool:
    """Whether a path leads through a link to a folder that it lies in: `**` follows it some forty times."""
    folders = [os.path.realpath(each) for each in (folder, *map(str, Path(folder).parents))]
    return len(set(folders)) < len(folders)


def _find(uri: str, spool: str, progress: Progress) -> FoundImages:
    kind = files.kind(uri)
    if kind == "missing":
        raise SourceError(f"input={uri}: no such file or folder; give an existing path or URI")
    if kind == "file" and not is_archive(uri) and (is_image(uri) or _begins_like_an_image(uri)):
        return FoundImages(image_table([files.basename(uri)], [uri], [0], [files.size(uri)]), {})
    return images_of(list_members(uri, spool, progress))


def _odd_file(uri: str) -> FoundImages | None:
    """Returns a local file that can't be read, with the reason, or that is no image, as skipped.

    None for other places: readable images, archives and folders, and what isn't there.
    """
    if not files.is_local(uri) or not os.path.lexists(real_path(uri)):
        return None
    name, reason = files.basename(uri), why_unreadable(uri)
    kind = kind_of(name)
    if reason and (is_image(name) or not is_known(kind)):
        table = image_table([name], [uri], [0], [0])
        return FoundImages(table.set_column(4, "error", pa.array([reason], pa.string())), {})
    if reason or not (files.kind(uri) == "directory" or is_archive(uri) or is_image(uri) or _begins_like_an_image(uri)):
        return FoundImages(image_table([], [], pa.array([], pa.int64()), pa.array([], pa.int64())), {kind: 1})
    return None


def _begins_like_an_image(uri: str) -> bool:
    return looks_like_image(bytes(files.read_range(uri, 0, min(HEAD_BYTES, files.size(uri)))))


def _renamed(table: pa.Table, prefix: str) -> pa.Table:
    """Returns the table with names below `prefix`, which is the name itself of an image that was given alone."""
    names = table["name"].to_pylist()
    alone = names == [posixpath.basename(prefix)]
    renamed = [prefix] if alone else [f"{prefix}/{name}" for name in names]
    return table.set_column(0, "name", pa.array(renamed, pa.string()))


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common(5))
