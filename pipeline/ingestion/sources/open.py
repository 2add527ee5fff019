"""Recognises the layout of a source and returns its index. A new layout is one entry in the table below."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress, silent
from pipeline.ingestion.sources import cifar, digits, folders, imagenet, webdataset
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.members import Listing, list_members, stem_of
from pipeline.ingestion.sources.published import cifar100, tiny_imagenet
from pipeline.ingestion.sources.source import Source
from pipeline.storage import files


@dataclass(frozen=True)
class _Options:
    """Values that some layouts need besides the listing."""

    name: str  # of the data set
    md5: str | None
    val_share: float  # 1: every image of a source without val
    spool: str  # folder for files that can't be read in place
    progress: Progress


@dataclass(frozen=True)
class _Layout:
    """A layout: its description, a test of whether a listing has it, and the function that indexes such a listing."""

    description: str
    matches: Callable[[Listing], bool]
    build: Callable[[Listing, _Options], Index]


# In the order in which "auto" tries them: the first that matches is taken, and class folders match almost anything.
_LAYOUTS = {
    "cifar-binary": _Layout(
        "CIFAR-10 binary: data_batch_N.bin, test_batch.bin",
        cifar.matches_binary,
        lambda listing, options: cifar.build_binary_index(listing, options.name, options.md5),
    ),
    "cifar-python": _Layout(
        "CIFAR-10 Python: data_batch_N, test_batch (restricted unpickling)",
        cifar.matches_python,
        lambda listing, options: cifar.build_python_index(listing, options.name, options.md5, options.spool),
    ),
    "cifar100-binary": _Layout(
        "CIFAR-100 binary: train.bin, test.bin, fine_label_names.txt",
        cifar100.matches_binary,
        lambda listing, options: cifar100.build_binary_index(listing, options.name, options.md5),
    ),
    "cifar100-python": _Layout(
        "CIFAR-100 Python: train, test, meta (restricted unpickling)",
        cifar100.matches_python,
        lambda listing, options: cifar100.build_python_index(listing, options.name, options.md5, options.spool),
    ),
    "tiny-imagenet": _Layout(
        "Tiny ImageNet: train/WNID/images, val/images, val/val_annotations.txt",
        tiny_imagenet.matches,
        lambda listing, options: tiny_imagenet.build_index(listing, options.name),
    ),
    "imagenet-archives": _Layout(
        "ImageNet's archives: ILSVRC2012_img_train.tar, _img_val.tar, _devkit_t12.tar.gz",
        imagenet.matches_official,
        lambda listing, options: imagenet.build_official_index(listing, options.name, options.progress),
    ),
    "kaggle": _Layout(
        "Kaggle's ImageNet: Data/CLS-LOC/{train/WNID,val}, LOC_val_solution.csv",
        imagenet.matches_kaggle,
        lambda listing, options: imagenet.build_kaggle_index(listing, options.name),
    ),
    "archives": _Layout(
        "archives (tar, zip) of class folders: one for each class or split, or one of all",
        webdataset.holds_archives,
        lambda listing, options: webdataset.build_archives_index(
            listing, options.name, options.val_share, options.spool, options.progress
        ),
    ),
    "webdataset": _Layout(
        "WebDataset: tars of NAME.jpg and NAME.cls",
        webdataset.matches,
        lambda listing, options: webdataset.build_index(
            listing, options.name, options.val_share, options.spool, options.progress
        ),
    ),
    "folders": _Layout(
        "class folders: [SPLIT/]CLASS/NAME.jpg|png|webp|bmp|gif|tif|...",
        folders.matches,
        lambda listing, options: folders.build_index(listing, options.name, options.val_share),
    ),
    "folders-first": _Layout(
        "class folders with folders below them: the first folder below the split is the class",
        folders.matches,
        lambda listing, options: folders.build_index(listing, options.name, options.val_share, "first"),
    ),
    "folders-last": _Layout(
        "class folders below other folders: the last folder is the class",
        folders.matches,
        lambda listing, options: folders.build_index(listing, options.name, options.val_share, "last"),
    ),
}
LAYOUTS = {name: layout.description for name, layout in _LAYOUTS.items()} | {
    "digits": "scikit-learn's digits; the source is the word digits"
}


def open_source(source: Source | str, *, spool: str, progress: Progress = silent) -> Index:
    """Returns the index of raw images at an absolute URI. Uses Ray if it runs.

    spool: a folder that every process of the cluster reaches, for archives that can't be read in place; the caller
    removes it. Raises SourceError if nothing is there, if an archive is damaged, or if the layout isn't in LAYOUTS.
    """
    source = source if isinstance(source, Source) else Source(source)
    if source.layout not in ("auto", *LAYOUTS):
        raise SourceError(f"layout {source.layout!r} is unknown; use auto or one of {', '.join(LAYOUTS)}")
    if source.layout == "digits":
        return digits.build_index(spool)
    listing = list_members(source.uri, spool, progress)
    name = stem_of(files.basename(source.uri))
    val_share = 1.0 if source.for_evaluation else source.val_share
    layout = _layout_of(listing, source.layout)
    return layout.build(listing, _Options(name, source.md5, val_share, spool, progress))


def _layout_of(listing: Listing, name: str) -> _Layout:
    """Returns the layout of this name, or for "auto" the first that matches. Raises SourceError if it doesn't match."""
    if name == "auto":
        for layout in _LAYOUTS.values():
            if layout.matches(listing):
                return layout
        raise SourceError(_unknown(listing, "is of no known layout"))
    if not _LAYOUTS[name].matches(listing):
        raise SourceError(_unknown(listing, f"is not of the layout {name}"))
    return _LAYOUTS[name]


def _unknown(listing: Listing, problem: str) -> str:
    """Returns the message for a source of no known layout, or of another than the given one."""
    suffixes = Counter("." + name.rsplit(".", 1)[-1] if "." in name else "no suffix" for name in listing.names)
    kinds = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(4))
    return (
        f"{listing.uri}: {problem}; found {len(listing):,} files ({kinds}), first {listing.names[0]!r}; "
        f"known layouts: {'; '.join(LAYOUTS.values())}"
    )
