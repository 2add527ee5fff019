"""Split and class of each image of a folder tree, decided from the whole tree.

Leading folders that all images share are no part of the decision. The first level with names of splits is the level of
splits, the next one that of the classes; what lies below a class folder belongs to the class if the class folders hold
images themselves. Where two levels could be the classes the tree is refused, and so is a folder beside the splits that
is none.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.core.errors import SourceError
from pipeline.core.shares import counted
from pipeline.ingestion.sources.recognise.emptied import check_emptied
from pipeline.ingestion.sources.recognise.folder_tree import (
    Folder,
    Path,
    folder_tree,
    is_flat,
    take_annotations,
    wrapped,
)
from pipeline.ingestion.sources.recognise.split_words import UNLABELLED, split_of, splits_among

_SHOWN = 3
_STRAY_SHARE = 0.1  # of the images in folders: a cover or a sample sheet beside class folders, not images to learn from


@dataclass(frozen=True)
class FolderMeaning:
    """The images of one folder."""

    split: str  # "train", "val", "test", or "" if the tree has no splits
    class_name: str
    key: str  # prefix of their keys: SPLIT/CLASS, or CLASS if there is one split only, and folders below the class


@dataclass
class Reading:
    """A tree as it was understood. Folders are named by their paths below the source, with "/" between the parts."""

    meanings: dict[str, FolderMeaning] = field(default_factory=dict)
    aside: dict[str, int] = field(default_factory=dict)  # images without a label: how many, by a description
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """A split of the tree: the folder whose folders are the classes."""

    split: str
    key: Path  # of the keys of its images
    folder: Folder


def read_tree(
    counts: Mapping[str, int], others: Mapping[str, Counter[str]], uri: str, class_level: str = "auto"
) -> Reading:
    """Returns what the folders mean. Raises SourceError, naming folders, for a tree that can be read in several ways.

    counts: {folder: images in it}. others: {folder: its other files by kind}, empty folders included. class_level:
    "first" or "last" says which folder below a split is the class; "auto" asks the tree.
    """
    reading = Reading()
    root = folder_tree(counts)
    reading.aside |= {f"images of {name}/, which describe others": n for name, n in take_annotations(root).items()}
    if not root.folders:
        raise SourceError(f"{uri}: {counted(root.total, 'image')} and no class folder; {_EXPECTED}, {_OR_NAMES}")
    *wrappers, top = wrapped(root)
    lone = [split for folder in [*wrappers[1:], top] if (split := split_of(folder.name))]
    roles = splits_among(top.folders)
    known = _class_names(top, roles)
    labelled = [name for name, role in roles.items() if role != UNLABELLED and not is_flat(top.folders[name], known)]
    if labelled:
        parts = _split_parts(top, roles, labelled, known, reading, uri)
    elif _splits_lie_below_classes(top):
        parts = _reversed_parts(top)
    else:
        parts = [_Part(lone[-1] if lone else "", (), _class_folders(top, roles, reading, uri))]
    _set_stray_images_aside(top, parts, reading, uri)
    _read_classes(parts, class_level, reading, uri)
    check_emptied([part.folder for part in parts], [*wrappers, top] if labelled or lone else [], others, uri)
    return reading


_EXPECTED = "expected SPLIT/CLASS/NAME or CLASS/NAME"
_OR_NAMES = "or names such as CLASS_12.jpg with two or more classes"


def _set_stray_images_aside(top: Folder, parts: Iterable[_Part], reading: Reading, uri: str) -> None:
    """Leaves images beside the class folders aside if they are few. Raises SourceError if they may be meant."""
    for folder in {each.path: each for part in parts for each in (top, part.folder)}.values():
        where = "/".join(folder.path) or "the source"
        if folder.num_images > _STRAY_SHARE * (folder.total - folder.num_images):
            lie = "isn't" if folder.num_images == 1 else "aren't"
            raise SourceError(
                f"{uri}: {counted(folder.num_images, 'image')} of {where} {lie} in a class folder; {_EXPECTED}"
            )
        if folder.num_images:
            reading.aside[f"images of {where} beside its folders"] = folder.num_images


def _class_names(top: Folder, roles: Mapping[str, str]) -> set[str]:
    """Returns names of folders that are classes beyond doubt: two or more in one split."""
    inner = [list(wrapped(top.folders[name]))[-1] for name, role in roles.items() if role != UNLABELLED]
    return {name for folder in inner if len(folder.folders) > 1 for name in folder.folders}


def _split_parts(
    top: Folder, roles: Mapping[str, str], labelled: list[str], known: set[str], reading: Reading, uri: str
) -> list[_Part]:
    """Returns the splits of a tree that has some."""
    strangers = [name for name in top.folders if name not in roles]
    if strangers:
        raise SourceError(
            f"{uri}: {_names(strangers)} {_is(strangers)} in none of the splits {sorted(labelled)}; move or rename "
            f"{'it' if len(strangers) == 1 else 'them'} (train, val or test), or give the folder of one split"
        )
    parts = []
    for name, role in roles.items():
        folder = top.folders[name]
        if name not in labelled:
            if role == "train":
                raise SourceError(
                    f"{uri}: {name}/ holds {counted(folder.total, 'image')} and no class folder; {_EXPECTED}"
                )
            reading.aside[f"images of {name}/ without class folders"] = folder.total
            continue
        levels = list(wrapped(folder))
        inside = next((level for level in levels if known & level.folders.keys()), levels[-1])
        parts.append(_Part(role, (name,), inside))
    renamed = [f"{part.key[0]} is {part.split}" for part in parts if part.key[0] != part.split]
    if renamed:
        reading.notes.append(f"splits: {', '.join(renamed)}")
    if {part.split for part in parts} == {"train"} and len(parts) == 1:
        return [_Part("train", (), parts[0].folder)]
    return parts


def _splits_lie_below_classes(top: Folder) -> bool:
    """Whether the tree is CLASS/SPLIT/NAME."""
    inner = [folder.folders for folder in top.folders.values() if not folder.num_images]
    return (
        len(inner) == len(top.folders) > 1
        and all(set(splits_among(folders)) == set(folders) for folders in inner)
        and not any(folder.folders for folders in inner for folder in folders.values())
        and any(split_of(name) == "train" for folders in inner for name in folders)
    )


def _reversed_parts(top: Folder) -> list[_Part]:
    """Returns the splits of CLASS/SPLIT/NAME, as those of SPLIT/CLASS/NAME."""
    parts: dict[str, _Part] = {}
    for class_name, folder in top.folders.items():
        for name, role in splits_among(folder.folders).items():
            part = parts.setdefault(name, _Part(role, (name,), Folder(())))
            part.folder.folders[class_name] = folder.folders[name]
    return list(parts.values())


def _class_folders(top: Folder, roles: Mapping[str, str], reading: Reading, uri: str) -> Folder:
    """Returns the class folders of a tree in which no split has any. A class may be called `train`."""
    flat = {name: role for name, role in roles.items() if name in top.folders}
    plain = [name for name in top.folders if name not in flat]
    if flat and not plain:
        raise SourceError(
            f"{uri}: {_names(sorted(flat))} {_hold(flat)} {counted(top.total, 'image')} and no class folder; "
            f"{_EXPECTED}"
        )
    aside = [name for name, role in flat.items() if role in ("test", UNLABELLED)] if len(plain) > 1 else []
    rest = [name for name in flat if name not in aside]
    if aside and rest:
        raise SourceError(
            f"{uri}: {_names(sorted(flat))} {_hold(flat)} no class folders and lie beside {_names(plain)}: splits or "
            f"classes? {_EXPECTED}"
        )
    for name in aside:
        reading.aside[f"images of {name}/ without class folders"] = top.folders[name].total
    if not aside:
        return top
    return Folder(top.path, top.num_images, {name: top.folders[name] for name in top.folders if name not in aside})


def _read_classes(parts: list[_Part], class_level: str, reading: Reading, uri: str) -> None:
    """Adds the meaning of every folder below the splits. Raises SourceError where two levels could be the classes."""
    if class_level == "auto":
        _check_one_level(parts, uri)
    nested = False
    for part in parts:
        for name, folder in part.folder.folders.items():
            for below in folder.below():
                class_name = below[-1] if below and class_level == "last" else name
                key = "/".join((*part.key, name, *below))
                reading.meanings["/".join((*folder.path, *below))] = FolderMeaning(part.split, class_name, key)
                nested |= bool(below)
    if nested and class_level != "last":
        reading.notes.append("images in folders below a class folder belong to its class")


def _check_one_level(parts: list[_Part], uri: str) -> None:
    """Raises SourceError unless the first folders below the splits are the classes beyond doubt."""
    holds_images: set[str] = set()
    below: dict[str, set[Path]] = {}
    for part in parts:
        for name, folder in part.folder.folders.items():
            for path in folder.below():
                while path and path[0].casefold() == name.casefold():  # cats/cats/1.jpg
                    path = path[1:]
                if path:
                    below.setdefault(name, set()).add(path)
                else:
                    holds_images.add(name)
    paths = sorted({path for found in below.values() for path in found}, key=len)
    classes = {name for part in parts for name in part.folder.folders}
    inner = sorted({path[0] for path in paths})
    words = sorted({part for path in paths for part in path if split_of(part)})
    is_one_chain = all(longer[: len(path)] == path for path, longer in itertools.pairwise(paths))
    if is_one_chain and not words and not classes & set(inner):
        return  # no folders below the classes, or the same in all: CLASS/images/NAME
    if words:
        raise SourceError(
            f"{uri}: {_names(sorted(below))} {_is(below)} no split and no class, but {_lie(below)} above "
            f"{_names(words)}; give one of them ({uri}/{min(below)}), or use SPLIT/CLASS/NAME"
        )
    if below.keys() <= holds_images and not classes & set(inner):
        return  # the class folders hold images, and more of them in folders of their own
    raise SourceError(
        f"{uri}: {_names(sorted(below))} {_lie(below)} above {_names(inner)}, so either may be the classes; put the "
        f"images of each class into one folder, or say which it is: --layout folders-first ({_some(sorted(below))}) or "
        f"folders-last ({_some(inner)})"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(f"{name!r}" for name in names[:_SHOWN]) + more


def _is(names: Iterable[str]) -> str:
    return "is" if len(list(names)) == 1 else "are"


def _hold(names: Iterable[str]) -> str:
    return "holds" if len(list(names)) == 1 else "hold"


def _lie(names: Iterable[str]) -> str:
    return "lies" if len(list(names)) == 1 else "lie"
