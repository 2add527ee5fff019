"""Lists the images of a folder, a prefix of a bucket, an archive, or one file."""

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress
from pipeline.ingestion.sources.members import Listing, list_members
from pipeline.ingestion.sources.recognise.file_kinds import is_image
from pipeline.storage import files


def find_images(uri: str, spool: str, progress: Progress) -> tuple[pa.Table, int]:
    """Returns the images at an absolute URI, and the number of other files that were skipped.

    uri: a folder or a prefix with everything below it, a tar (plain, .gz or .xz), or one image. spool: an empty local
    folder for archives that must be unpacked; it has to stay until the images have been read. The table has the columns
    name, object (URI), offset and length, one row for each file whose name ends like an image's. Raises SourceError if
    there are none.
    """
    kind = files.kind(uri)
    if kind == "missing":
        raise SourceError(f"input={uri}: no such file or folder; give an existing path or URI")
    if kind == "file" and is_image(uri):
        return image_table([files.basename(uri)], [uri], [0], [files.size(uri)]), 0
    return images_of(list_members(uri, spool, progress))


def images_of(listing: Listing) -> tuple[pa.Table, int]:
    """Returns the images among listed files, and the number of other files. Raises SourceError if there are none."""
    chosen = np.array([is_image(name) for name in listing.names], dtype=np.bool_)
    if not chosen.any():
        raise SourceError(f"input={listing.uri}: no file is named like an image; give images in a folder or an archive")
    table = image_table(listing.names, listing.objects, listing.offsets, listing.lengths)
    return table.filter(pa.array(chosen)), int((~chosen).sum())


def image_table(names: Any, objects: Any, offsets: Any, lengths: Any) -> pa.Table:
    """Returns a table of images with the columns that `source_reader` reads by: where the bytes of each image are."""
    columns = {"name": names, "object": pa.array(objects, pa.string()).dictionary_encode()}
    return pa.table({**columns, "offset": offsets, "length": lengths})
