"""Why a source that can't be read may not be what a classifier takes: boxes of objects, or a table as a spreadsheet."""

from collections.abc import Sequence

from pipeline.ingestion.sources.recognise.file_kinds import is_image, left_behind

_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_BOXES = {".xml": "Pascal VOC's", ".txt": "YOLO's"}  # a file beside each image, or in a folder of its own


def lookalike(names: Sequence[str]) -> str | None:
    """Returns a line on what the files of a source look like, with the remedy; None where they look like nothing known.

    names: of all files, relative to the source.
    """
    names = [name for name in names if not left_behind(name)]
    for name in names:
        if name.lower().endswith(_SPREADSHEETS):
            return f"{name} isn't read: save it as a table in CSV, with a column of files and one of labels"
    images = {_stem(name) for name in names if is_image(name)}
    for suffix, whose in _BOXES.items():
        boxes = [name for name in names if name.lower().endswith(suffix) and _stem(name) in images]
        if len(boxes) > 1 and 2 * len(boxes) >= len(images):
            return (
                f"{boxes[0]} and {len(boxes) - 1:,} more look like boxes of objects ({whose} form), and a classifier "
                "takes one label an image: write a table labels.csv of (file, label)"
            )
    return None


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0]
