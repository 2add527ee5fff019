"""Class folders and splits in which there are files, but no image: they would disappear without a word."""

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.core.errors import SourceError
from pipeline.core.shares import counted
from pipeline.ingestion.sources.recognise.file_kinds import is_text_or_data
from pipeline.ingestion.sources.recognise.folder_tree import Folder
from pipeline.ingestion.sources.recognise.split_words import splits_among

# Folders beside the class folders that nobody takes for a class, if they hold text or data.
_NO_CLASSES = (
    "annotation", "annotations", "label", "labels", "meta", "metadata", "doc", "docs", "script", "scripts", "json",
    "xml", "csv", "txt", "code", "src", "bbox", "bboxes", "boxes", "lists", "splits", "notebooks",
)  # fmt: skip
_SHOWN_KINDS = 3


def check_emptied(
    class_parents: Sequence[Folder], split_parents: Sequence[Folder], others: Mapping[str, Counter[str]], uri: str
) -> None:
    """Raises SourceError if a class folder, or a split, holds files and no image, naming it.

    class_parents: the folders whose folders are the classes, one for each split. split_parents: folders
    whose folders are splits. others: {folder: its files that aren't images, by kind}; an empty folder has no kinds.
    """
    known = {name for parent in class_parents for name in parent.folders}
    for parent in class_parents:
        for name, kinds in _without_images(parent, others).items():
            if not kinds and name in known:
                continue  # an empty folder of a class that has images elsewhere
            if name in known or not (name.lower() in _NO_CLASSES and all(map(is_text_or_data, kinds))):
                raise SourceError(_message(uri, "class folder", (*parent.path, name), kinds))
    for parent in split_parents:
        found = _without_images(parent, others)
        for name in splits_among([*parent.folders, *found]):
            if name in found and found[name] and not all(map(is_text_or_data, found[name])):
                raise SourceError(_message(uri, "split", (*parent.path, name), found[name]))


def _without_images(parent: Folder, others: Mapping[str, Counter[str]]) -> dict[str, Counter[str]]:
    """Returns {name: files by kind} of the folders in `parent` that have no image."""
    found: dict[str, Counter[str]] = {}
    depth = len(parent.path)
    for place, kinds in others.items():
        path = tuple(place.split("/")) if place else ()
        if len(path) > depth and path[:depth] == parent.path and path[depth] and path[depth] not in parent.folders:
            found.setdefault(path[depth], Counter()).update(kinds)
    return found


def _message(uri: str, what: str, path: Sequence[str], kinds: Counter[str]) -> str:
    place = "/".join(path)
    if not kinds:
        return f"{uri}: {what} {place!r} is empty; add images, or remove it"
    shown = ", ".join(f"{count:,} x {kind}" for kind, count in kinds.most_common(_SHOWN_KINDS))
    files = counted(kinds.total(), "file")
    return f"{uri}: {what} {place!r} holds {files} and no image ({shown}); convert what is there, or remove the folder"
