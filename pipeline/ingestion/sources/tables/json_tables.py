"""Reads tables of file names and labels that are JSON: rows, columns, {file: label}, or COCO's annotations.

Forms, each with names and values as in a CSV:

    [{"file": "1.jpg", "label": "cat"}, ...]                           rows; one in each line in JSON lines
    {"file": ["1.jpg", ...], "label": [...]}                           columns, as lists or as pandas writes them
    {"1.jpg": "cat", ...}                                              a label for each file, named with its suffix
    {"images": [...], "annotations": [...], "categories": [...]}       COCO's, as iNaturalist has it
"""

import json
from typing import Any

Columns = dict[str, list[str]]


def json_columns(data: bytes) -> Columns:
    """Returns the columns of a JSON table, values as text. Raises ValueError if it has none of the known forms."""
    found = json.loads(data.decode("utf-8-sig"))
    if isinstance(found, list):
        return rows_to_columns(found)
    if not isinstance(found, dict) or not found:
        raise ValueError("it is neither rows, nor columns, nor {file: label}")
    if isinstance(found.get("images"), list) and isinstance(found.get("annotations"), list):
        try:
            return _coco_columns(found)
        except (AttributeError, TypeError) as error:  # names or numbers in place of objects
            raise ValueError("its images and annotations haven't COCO's form") from error
    if all("." in name for name in found) and all(isinstance(v, (str, int, float)) for v in found.values()):
        return {"file": list(found), "label": list(map(_text, found.values()))}
    columns = {name: list(v.values()) if isinstance(v, dict) else v for name, v in found.items()}
    lengths = {len(values) if isinstance(values, list) else -1 for values in columns.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError("it is neither rows, nor columns, nor {file: label}")
    return {name: list(map(_text, values)) for name, values in columns.items() if not _is_nested(values)}


def json_lines_columns(data: bytes) -> Columns:
    """Returns the columns of JSON lines: an object in each line. Raises ValueError for anything else."""
    rows = []
    # Not `splitlines`, which cuts at characters that a text in JSON may hold, such as U+2028.
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number} isn't JSON: {error}") from error
    return rows_to_columns(rows)


def rows_to_columns(rows: list[Any]) -> Columns:
    """Returns the columns of objects, without those that hold objects or lists. Raises ValueError for other rows."""
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a row isn't an object with names and values")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return {name: list(map(_text, values)) for name, values in columns.items() if not _is_nested(values)}


def _coco_columns(found: dict[str, Any]) -> Columns:
    """Returns a row for each annotation of a file: its name, and the name of its category.

    A picture of objects of several classes has rows with several labels; whoever reads the table refuses it.
    """
    files = {image["id"]: image["file_name"] for image in found["images"] if {"id", "file_name"} <= image.keys()}
    names = {each["id"]: each["name"] for each in found.get("categories", ()) if {"id", "name"} <= each.keys()}
    pairs = [
        (files[each["image_id"]], names.get(each["category_id"], each["category_id"]))
        for each in found["annotations"]
        if each.get("image_id") in files and "category_id" in each
    ]
    return {"file": [str(file) for file, _ in pairs], "label": [_text(label) for _, label in pairs]}


def _is_nested(values: list[Any]) -> bool:
    return any(isinstance(value, (dict, list)) for value in values)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
