"""Labels in the names of files, as Kaggle's dogs-vs-cats and the Oxford pets have them: `train/cat.0.jpg`."""

from pipeline.ingestion.sources.folders import composed
from pipeline.ingestion.sources.index import Index
from pipeline.ingestion.sources.labelled import LabelledFiles, Refusal, labelled_index
from pipeline.ingestion.sources.members import Listing
from pipeline.ingestion.sources.recognise.named_labels import NamedLabels, read_names
from pipeline.ingestion.sources.recognise.split_lists import with_split_lists
from pipeline.ingestion.sources.tables import labels


def matches(listing: Listing) -> bool:
    """Whether the names of the images are labels beyond doubt, and no table names the images."""
    found = _read(listing)
    return found is not None and not found.problem and not labels.names_files(listing)


def problem(listing: Listing) -> str:
    """Returns why names that look like labels aren't read as such; "" if none do."""
    found = _read(listing)
    return found.problem if found else ""


def may_match(listing: Listing) -> bool:
    """Whether the names can be read as labels where the user says that they are."""
    return _read(listing, plain=False) is not None


def _read(listing: Listing, plain: bool = True) -> NamedLabels | None:
    images = listing.image_rows
    unreadable = [at for at, row in enumerate(images) if row in listing.unreadable]
    return read_names([listing.names[row] for row in images], unreadable, plain)


def build_index(listing: Listing, name: str, val_share: float) -> Index:
    """Returns the index. A key is the name of the file, below that of its split if there are several.

    Splits that are missing: see `labelled_index`. Raises SourceError as that does.
    """
    found = _read(listing)
    if found is None or found.problem:
        found = _read(listing, plain=False)
    assert found is not None
    images = listing.image_rows
    chosen = sorted(found.labels)
    aside, refusals = {}, []
    for what, rows in found.aside.items():
        bad = [images[at] for at in rows if images[at] in listing.unreadable]
        refusals += [Refusal(listing.names[row], "", listing.unreadable[row], None, row) for row in bad]
        if len(rows) > len(bad):
            aside[what] = len(rows) - len(bad)
    first = listing.names[images[chosen[0]]].rpartition("/")[2]
    labelled = LabelledFiles(
        [images[at] for at in chosen],
        [found.keys[at] for at in chosen],
        [found.splits[at] for at in chosen],
        composed([found.labels[at] for at in chosen]),
        [f"labels are the beginnings of the files' names: {first} is of class {found.labels[chosen[0]]}"],
        aside,
        refusals,
    )
    return labelled_index(listing, name, "names", with_split_lists(listing, labelled), val_share=val_share)
