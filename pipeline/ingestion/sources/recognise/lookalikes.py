"""Why a source that can't be read may not be what a classifier takes: boxes of objects, captions, or a spreadsheet."""

from pipeline.ingestion.sources.members import Listing
from pipeline.ingestion.sources.recognise.file_kinds import is_image, left_behind

_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_REMEDY = "and a classifier takes one label an image: write a table labels.csv of (file, label)"


def lookalike(listing: Listing) -> str | None:
    """Returns a line on what the files of a source look like, with the remedy; None where they look like nothing known.

    Reads one file at most.
    """
    rows = [row for row, name in enumerate(listing.names) if not left_behind(name)]
    for row in rows:
        if listing.names[row].lower().endswith(_SPREADSHEETS):
            return (
                f"{listing.names[row]} isn't read: save it as a table in CSV, with a column of files and one of labels"
            )
    images = {_stem(listing.names[row]) for row in rows if is_image(listing.names[row])}
    for suffix in (".xml", ".txt"):  # a file beside each image, or in a folder of its own
        beside = [row for row in rows if listing.names[row].lower().endswith(suffix)]
        beside = [row for row in beside if _stem(listing.names[row]) in images]
        if len(beside) > 1 and 2 * len(beside) >= len(images):
            what = "boxes of objects (Pascal VOC's form)" if suffix == ".xml" else _kind_of_text(listing, beside[0])
            return f"{listing.names[beside[0]]} and {len(beside) - 1:,} more look like {what}, {_REMEDY}"
    return None


def _kind_of_text(listing: Listing, row: int) -> str:
    words = bytes(listing.member(row).read()[:1000]).decode("utf-8", "replace").split()
    try:
        list(map(float, words))
    except ValueError:
        return "captions"
    return "boxes of objects (YOLO's form)"


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]
