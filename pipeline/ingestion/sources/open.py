"""Recognises the layout of a source and returns its index. A new layout is one entry in the table below."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.core.errors import SourceError
from pipeline.core.progress import Progress, silent
from pipeline.core.shares import counted
from pipeline.ingestion.sources import cifar, digits, folders, imagenet, named, webdataset
from pipeline.ingestion.sources.index import Index, with_test
from pipeline.ingestion.sources.located import list_source
from pipeline.ingestion.sources.members import Listing
from pipeline.ingestion.sources.published import cifar100, tiny_imagenet
from pipeline.ingestion.sources.recognise.lookalikes import lookalike
from pipeline.ingestion.sources.source import Source
from pipeline.ingestion.sources.tables import image_parquet, labels
from pipeline.ingestion.sources.tables.choose_tables import TableOptions


@dataclass(frozen=True)
class _Options:
    """Values that some layouts need besides the listing."""

    name: str  # of the data set
    md5: str | None
    val_share: float  # 1: every image of a source without val
    spool: str  # folder for files that can't be read in place
    progress: Progress
    tables: TableOptions


@dataclass(frozen=True)
class _Layout:
    """A layout: its description, a test of whether a listing has it, and the function that indexes such a listing."""

    description: str
    matches: Callable[[Listing], bool]
    build: Callable[[Listing, _Options], Index]
    may_be: Callable[[Listing], bool] | None = None  # the test where the user names the layout; None: `matches`


def _may_be_folders(listing: Listing) -> bool:
    return folders.matches(listing) or webdataset.holds_archives(listing)


def _class_folders(listing: Listing, options: _Options, class_level: folders.ClassLevel) -> Index:
    opened = webdataset.class_folders(listing, options.spool, options.progress)
    return folders.build_index(opened, options.name, options.val_share, class_level)


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
            listing, options.name, options.tables, options.spool, options.progress
        ),
    ),
    "webdataset": _Layout(
        "WebDataset: tars of NAME.jpg and NAME.cls",
        webdataset.matches,
        lambda listing, options: webdataset.build_index(
            listing, options.name, options.val_share, options.spool, options.progress
        ),
    ),
    "parquet": _Layout(
        "Parquet with a column of images, as Hugging Face's data sets: data/train-00000-of-00002.parquet",
        image_parquet.matches,
        lambda listing, options: image_parquet.build_index(
            listing, options.name, options.tables, options.spool, options.progress
        ),
    ),
    "names": _Layout(
        "labels in the names of files: LABEL.NUMBER.jpg or LABEL_NUMBER.jpg, in one folder or in folders of splits",
        named.matches,
        lambda listing, options: named.build_index(listing, options.name, options.val_share),
        named.may_match,
    ),
    "table": _Layout(
        "a table of (file, label[, split]) with a folder of images: labels.csv, train.csv, .tsv, .parquet, .json",
        labels.matches,
        lambda listing, options: labels.build_index(listing, options.name, options.tables),
        labels.has_table,
    ),
    "folders": _Layout(
        "class folders: [SPLIT/]CLASS/NAME.jpg|png|webp|bmp|gif|tif|...",
        folders.matches,
        lambda listing, options: _class_folders(listing, options, "auto"),
        _may_be_folders,
    ),
    "folders-first": _Layout(
        "class folders with folders below them: the first folder below the split is the class",
        folders.matches,
        lambda listing, options: _class_folders(listing, options, "first"),
        _may_be_folders,
    ),
    "folders-last": _Layout(
        "class folders below other folders: the last folder is the class",
        folders.matches,
        lambda listing, options: _class_folders(listing, options, "last"),
        _may_be_folders,
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
        return with_test(digits.build_index(spool), source.test_share)
    found = list_source(source.uri, spool, progress)
    val_share = 1.0 if source.for_evaluation else source.val_share
    tables = TableOptions(found.table, source.image_column, source.label_column, val_share)
    by_column = found.table is not None or source.image_column is not None or source.label_column is not None
    layout = _layout_of(found.listing, source.layout, by_column)
    options = _Options(found.name, source.md5, val_share, spool, progress, tables)
    build = _build_folders if layout is _LAYOUTS["folders"] else layout.build
    index = with_test(build(found.listing, options), source.test_share)
    return replace(index, stamps=found.listing.stamps)


def _build_folders(listing: Listing, options: _Options) -> Index:
    """Returns the index of class folders. A table that labels the images, too, is told to the user."""
    try:
        index = _LAYOUTS["folders"].build(listing, options)
    except SourceError as error:
        if problem := lookalike(listing) or named.problem(listing):
            raise SourceError(f"{error}; {problem}") from error
        if not labels.has_table(listing):
            raise
        try:
            labels.build_index(listing, options.name, options.tables)
        except SourceError as problem:
            raise SourceError(f"{error}; and as a table: {str(problem).removeprefix(f'{listing.uri}: ')}") from error
        raise SourceError(f"{error}; or --layout table, which takes the labels of a table that is there") from error
    line = labels.hint(listing)
    return replace(index, notes=(*index.notes, line)) if line else index


def _layout_of(listing: Listing, name: str, by_column: bool) -> _Layout:
    """Returns the layout of this name, or for "auto" the first that matches. Raises SourceError if it doesn't match.

    by_column: whether the user names a table or a column of it.
    """
    if name == "auto" and by_column:
        if webdataset.holds_archives(listing):
            return _LAYOUTS["archives"]
        return _LAYOUTS["parquet" if image_parquet.matches(listing) else "table"]
    if name == "auto":
        for layout in _LAYOUTS.values():
            if layout.matches(listing):
                return layout
        raise SourceError(_unknown(listing, "is of no known layout"))
    layout = _LAYOUTS[name]
    if not (layout.may_be or layout.matches)(listing):
        raise SourceError(_unknown(listing, f"is not of the layout {name}"))
    return layout


def _unknown(listing: Listing, problem: str) -> str:
    """Returns the message for a source of no known layout, or of another than the given one."""
    suffixes = Counter("." + name.rsplit(".", 1)[-1] if "." in name else "no suffix" for name in listing.names)
    kinds = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(4))
    return (
        f"{listing.uri}: {problem}; found {counted(len(listing), 'file')} ({kinds}), first {listing.names[0]!r}; put "
        "the images of each class into a folder of its own, or write a table labels.csv of (file, label) beside them; "
        f"--layout knows {', '.join(LAYOUTS)} (docs/guides/ingest.md)"
    )
