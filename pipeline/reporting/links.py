"""Links from a page to other files, relative to the page: they hold when the whole folder is moved or served."""

import posixpath
from urllib.parse import quote

from pipeline.storage import files


def relative_link(folder: str, target: str | None) -> str | None:
    """Returns the relative URL from a page in `folder` to `target`, or None where there is none.

    folder, target: absolute paths or URIs. There is none for no target, no folder, or one that lies elsewhere: on a
    local disk and in a bucket, or in two buckets.
    """
    if not folder or not target or files.is_local(folder) != files.is_local(target):
        return None
    if not files.is_local(folder):
        if _bucket(folder) != _bucket(target):
            return None
        folder, target = (place.partition("://")[2].partition("?")[0] for place in (folder, target))
    return quote(posixpath.relpath(target, folder))


def existing(*places: str | None) -> list[str]:
    """Returns the places at which there is a file. For links: a data set that was made without a page has none."""
    return [place for place in places if place and files.exists(place)]


def _bucket(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
