"""What the URI of a source stands for: a folder, an archive, a table in a folder, or a data set of the hub."""

import posixpath
from dataclasses import dataclass, replace

from pipeline.core.progress import Progress
from pipeline.ingestion.sources import hub
from pipeline.ingestion.sources.members import Listing, list_members, stem_of
from pipeline.ingestion.sources.tables import image_parquet
from pipeline.ingestion.sources.tables.read import is_table_file
from pipeline.storage import files


@dataclass(frozen=True)
class Located:
    """The files of a source."""

    listing: Listing
    name: str  # of the data set
    table: str | None = None  # the table that was given, relative to its folder


def list_source(uri: str, spool: str, progress: Progress) -> Located:
    """Returns the files at an absolute URI. Raises SourceError: see `list_members` and `hub.download`."""
    if hub.is_hub(uri):
        folder, fingerprint = hub.download(uri, progress)
        listing = replace(list_members(folder, spool, progress), uri=uri, fingerprint=fingerprint)
        return Located(listing, hub.name_of(uri))
    if not _is_table(uri):
        return Located(list_members(uri, spool, progress), stem_of(files.basename(uri)))
    listing, table = list_members(folder_of(uri), spool, progress), files.basename(uri)
    alone = listing.only([listing.names.index(table)])
    if image_parquet.matches(alone):
        return Located(alone, posixpath.splitext(table)[0])
    return Located(listing, files.basename(folder_of(uri)), table)


def folder_of(uri: str) -> str:
    """Returns the folder whose files are read for a URI: that of a table; other URIs as they are."""
    if hub.is_hub(uri) or not _is_table(uri):
        return uri
    base, mark, query = uri.partition("?")
    return posixpath.dirname(base) + mark + query


def fingerprint(uri: str) -> str:
    """Returns a text that changes with names, sizes and times of the files of a source. Raises SourceError."""
    return hub.fingerprint(uri) if hub.is_hub(uri) else files.fingerprint(folder_of(uri))


def exists(uri: str) -> bool:
    """Whether there is something at a URI; of the hub this is found when it is read."""
    return hub.is_hub(uri) or files.exists(uri)


def _is_table(uri: str) -> bool:
    return is_table_file(files.basename(uri)) and files.kind(uri) == "file"
