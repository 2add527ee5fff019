"""Which layout a source has, and its index."""

import re
from collections import Counter

from pipeline import storage
from pipeline.errors import SourceError
from pipeline.progress import Progress, silent
from pipeline.sources import cifar, digits, folders
from pipeline.sources.index import Index
from pipeline.sources.members import Listing, list_members

LAYOUTS = {
    "cifar-binary": "CIFAR-10 binary: data_batch_N.bin, test_batch.bin",
    "cifar-python": "CIFAR-10 Python: data_batch_N, test_batch (restricted unpickling)",
    "folders": "class folders: [SPLIT/]CLASS/NAME.jpg|jpeg|png",
    "digits": "scikit-learn's digits; the source is the word digits",
}


def open_source(
    uri: str, *, spool: str, layout: str = "auto", md5: str | None = None, progress: Progress = silent
) -> Index:
    """Returns the index of the raw images at absolute `uri`, a directory or a tar.

    spool: a folder that every process of the cluster reaches, for what can't be read in place; the caller
    removes it. Raises SourceError if nothing is there, or it is damaged, or of a layout not in LAYOUTS.
    """
    if layout not in ("auto", *LAYOUTS):
        raise SourceError(f"layout {layout!r} is unknown; use auto or one of {', '.join(LAYOUTS)}")
    if layout == "digits":
        return digits.build_index(spool)
    listing = list_members(uri, spool, progress)
    name = re.sub(r"\.(tar|tgz|txz|gz|xz)$", "", re.sub(r"\.(gz|xz)$", "", storage.basename(uri)))
    detected = _detect(listing) if layout == "auto" else layout
    if detected == "cifar-binary":
        return cifar.build_binary_index(listing, name, md5)
    if detected == "cifar-python":
        return cifar.build_python_index(listing, name, md5, spool)
    if not folders.matches(listing):
        raise SourceError(_unknown(listing, "has no image in a class folder"))
    return folders.build_index(listing, name)


def _detect(listing: Listing) -> str:
    if cifar.matches_binary(listing):
        return "cifar-binary"
    if cifar.matches_python(listing):
        return "cifar-python"
    if folders.matches(listing):
        return "folders"
    raise SourceError(_unknown(listing, "is of no known layout"))


def _unknown(listing: Listing, what: str) -> str:
    suffixes = Counter("." + m.name.rsplit(".", 1)[-1] if "." in m.name else "no suffix" for m in listing.members)
    kinds = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(4))
    return (
        f"{listing.uri}: {what}; found {len(listing.members)} files ({kinds}), first {listing.members[0].name!r}; "
        f"understood are {'; '.join(LAYOUTS.values())}"
    )
