"""Recognises the layout of a source and returns its index."""

import re
from collections import Counter

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress, silent
from pipeline.ingestion.sources import cifar, digits, folders, imagenet, webdataset
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.members import Listing, list_members
from pipeline.ingestion.sources.source import Source
from pipeline.storage import files

# In the order in which a source is compared with them: a CIFAR archive would also pass for class folders.
LAYOUTS = {
    "cifar-binary": "CIFAR-10 binary: data_batch_N.bin, test_batch.bin",
    "cifar-python": "CIFAR-10 Python: data_batch_N, test_batch (restricted unpickling)",
    "imagenet-archives": "ImageNet's archives: ILSVRC2012_img_train.tar, _img_val.tar, _devkit_t12.tar.gz",
    "kaggle": "Kaggle's ImageNet: Data/CLS-LOC/{train/WNID,val}, LOC_val_solution.csv",
    "webdataset": "WebDataset: tars of NAME.jpg and NAME.cls",
    "folders": "class folders: [SPLIT/]CLASS/NAME.jpg|jpeg|png|webp|bmp",
    "digits": "scikit-learn's digits; the source is the word digits",
}
_MATCHES = {
    "cifar-binary": cifar.matches_binary,
    "cifar-python": cifar.matches_python,
    "imagenet-archives": imagenet.matches_official,
    "kaggle": imagenet.matches_kaggle,
    "webdataset": webdataset.matches,
    "folders": folders.matches,
}


def open_source(source: Source | str, *, spool: str, progress: Progress = silent) -> Index:
    """Returns the index of raw images at an absolute URI. Uses Ray if it runs.

    spool: a folder that every process of the cluster reaches, for archives that can't be read in place; the caller
    removes it. Raises SourceError if nothing is there, if an archive is damaged, or if the layout isn't in LAYOUTS.
    """
    source = source if isinstance(source, Source) else Source(source)
    uri, layout, md5 = source.uri, source.layout, source.md5
    if layout not in ("auto", *LAYOUTS):
        raise SourceError(f"layout {layout!r} is unknown; use auto or one of {', '.join(LAYOUTS)}")
    if layout == "digits":
        return digits.build_index(spool)
    listing = list_members(uri, spool, progress)
    name = re.sub(r"\.(tar|tgz|txz|gz|xz)$", "", re.sub(r"\.(gz|xz)$", "", files.basename(uri)))
    if layout == "auto":
        layout = next((each for each, matches in _MATCHES.items() if matches(listing)), "")
        if not layout:
            raise SourceError(_unknown(listing, "is of no known layout"))
    elif not _MATCHES[layout](listing):
        raise SourceError(_unknown(listing, f"is not of the layout {layout}"))
    if layout == "cifar-binary":
        return cifar.build_binary_index(listing, name, md5)
    if layout == "cifar-python":
        return cifar.build_python_index(listing, name, md5, spool)
    if layout == "imagenet-archives":
        return imagenet.build_official_index(listing, name, progress)
    if layout == "kaggle":
        return imagenet.build_kaggle_index(listing, name)
    if layout == "webdataset":
        return webdataset.build_index(listing, name, progress)
    return folders.build_index(listing, name)


def _unknown(listing: Listing, problem: str) -> str:
    """Returns the message for a source of no known layout, or of another than the given one."""
    suffixes = Counter("." + name.rsplit(".", 1)[-1] if "." in name else "no suffix" for name in listing.names)
    kinds = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(4))
    return (
        f"{listing.uri}: {problem}; found {len(listing):,} files ({kinds}), first {listing.names[0]!r}; "
        f"known layouts: {'; '.join(LAYOUTS.values())}"
    )
