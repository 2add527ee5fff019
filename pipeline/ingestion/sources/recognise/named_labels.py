"""Labels in the names of files: `cat.0.jpg`, `dog_12.jpg`, `Abyssinian_1.jpg`, `cat (3).jpg`.

Names are labels only where the whole tree makes it plain: the images lie in one folder, or in folders of splits without
class folders; nearly all names are a label, a sign and a number; there are two labels or more, and two images or more
of each. What cameras and programs write, such as IMG_0012 and frame-7, is no label, and neither are hashes and dates.
"""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.ingestion.sources.recognise.file_kinds import is_image
from pipeline.ingestion.sources.recognise.folder_tree import Folder, folder_tree, is_flat, take_annotations, wrapped
from pipeline.ingestion.sources.recognise.split_words import (
    UNLABELLED,
    split_name,
    split_of,
    splits_among,
)

STRAY_SHARE = 0.1  # of the images of a folder: a cover among labelled images
_LEAST_FILES = 2  # of a label
_NUMBERED = re.compile(r"(.+?)(?:[ ._-]+\d+|[ ._-]*\(\d+\))", re.DOTALL)
_ENDS_IN_A_NUMBER = re.compile(r".*[ ._-]\d+|.*\(\d+\)", re.DOTALL)  # of cat_1_2: is the label cat, or cat_1?
_HASH = re.compile(r"(?=.*\d)[0-9a-f]{6,}", re.IGNORECASE)
_SYNSET = re.compile(r"n\d{8}")  # of WordNet, as in ImageNet's n01440764_10026.JPEG
_DATE_DIGITS = 4  # as many in one piece are a date, a time, or the number of something
_TOKEN = re.compile(r"[^\W\d_]+|\d+")
# Words of cameras, telephones and programs, which say nothing of what an image shows.
_NO_LABELS = frozenset((
    "img", "imgs", "image", "images", "imagen", "bild", "dsc", "dscn", "dscf", "dscim", "dcim", "dji", "gopr", "gopro",
    "pxl", "pano", "mvi", "mov", "vid", "video", "sam", "kodak", "cimg", "imag", "pict", "pic", "pics", "picture",
    "pictures", "photo", "photos", "foto", "fotos", "snapshot", "snap", "screenshot", "screen", "shot", "scan", "scans",
    "capture", "whatsapp", "signal", "telegram", "fb", "received", "edited", "copy", "new", "final", "untitled",
    "unnamed", "unknown", "noname", "download", "downloaded", "file", "files", "frame", "frames", "page", "slide",
    "sample", "samples", "example", "data", "dataset", "item", "index", "idx", "id", "no", "nr", "num", "number", "cam",
    "camera", "clip", "seq", "sequence", "batch", "part", "chunk", "shard", "tile", "patch", "crop", "fold", "view",
    "rgb", "jpg", "jpeg", "png", "gif", "bmp", "tif", "tiff", "webp", "output", "out", "input", "result", "tmp", "temp",
    "at", "of", "the", "my", "and", "burst", "cover", "portrait", "hdr", "resized", "cropped", "thumb", "thumbnail",
))  # fmt: skip


@dataclass
class NamedLabels:
    """Labels that stand in names, or the reason why they can't be used."""

    labels: dict[int, str] = field(default_factory=dict)  # {index of the image: its label}
    splits: dict[int, str] = field(default_factory=dict)  # {index of the image: "train", "val", "test" or ""}
    keys: dict[int, str] = field(default_factory=dict)
    aside: dict[str, list[int]] = field(default_factory=dict)  # images without a label, by a description
    problem: str = ""  # why names that look like labels aren't used


@dataclass(frozen=True)
class _Part:
    """A folder of images."""

    folder: str
    split: str
    key: str  # begins the keys of its images if there are several parts


def read_names(names: Sequence[str], unreadable: Iterable[int] = (), plain: bool = True) -> NamedLabels | None:
    """Returns the labels in the names of images, None where no names look like labels.

    names: paths below the source, with "/" between the parts. unreadable: indices of names that may be folders. plain:
    whether only labels count that are labels beyond doubt; else whatever stands before a number.
    """
    known = set(unreadable)
    by_folder: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        by_folder[name.rpartition("/")[0]].append(row)
    root = folder_tree({f: count for f, rows in by_folder.items() if (count := sum(row not in known for row in rows))})
    described = take_annotations(root)
    parts = _parts(root)
    if parts is None:
        return None
    found, labelled = NamedLabels(), list[_Part]()
    for folder in described:
        inside = (rows for each, rows in by_folder.items() if f"{each}/".startswith(f"{folder}/"))
        found.aside[f"images of {folder}/, which describe others"] = sorted(row for rows in inside for row in rows)
    for part in parts:
        labels = _read_part(part, names, by_folder[part.folder], known, plain, found)
        if labels:
            labelled.append(part)
            found.labels |= labels
    if "train" in {part.split for part in parts} - {part.split for part in labelled}:
        return None  # the images of train have no labels
    for part in labelled:
        for row in by_folder[part.folder]:
            if row in found.labels:
                base = names[row].rpartition("/")[2]
                found.splits[row], found.keys[row] = part.split, f"{part.key}/{base}" if len(labelled) > 1 else base
    used = {*found.labels, *(row for rows in found.aside.values() for row in rows)}
    for folder, rows in by_folder.items():
        if rest := [row for row in rows if row not in used]:
            found.aside[f"images of {folder or 'the source'} beside its folders"] = rest
    return _checked(found, names, plain)


def _parts(root: Folder) -> list[_Part] | None:
    """Returns the folders whose images may have labels in their names; None if some lie in folders of other meaning."""
    levels = list(wrapped(root))
    top = levels[-1]
    if not top.folders:
        return [_Part("", "", "")]
    if top.num_images > STRAY_SHARE * (top.total - top.num_images):
        return None
    roles = splits_among(top.folders)
    others = [name for name in top.folders if name not in roles]
    if (others and len(top.folders) > 1) or not all(is_flat(folder, set()) for folder in top.folders.values()):
        return None
    if others:
        above = [split for level in levels[1:] if (split := split_of(level.name))]
        return [_Part(_images_of(top.folders[others[0]]), above[-1] if above else "", "")]
    return [_Part(_images_of(top.folders[name]), split, name) for name, split in roles.items()]


def _images_of(folder: Folder) -> str:
    return "/".join(next(each.path for each in folder.walk() if each.num_images))


def _read_part(
    part: _Part, names: Sequence[str], rows: Sequence[int], unreadable: set[int], plain: bool, found: NamedLabels
) -> dict[int, str]:
    """Returns {index: label} of one folder, {} if many have none; adds images without one to those left aside."""
    labels = {row: label for row in rows if (label := label_in(names[row], plain))}
    readable = sum(row not in unreadable for row in rows)
    stray = [row for row in rows if row not in labels]
    if part.split == UNLABELLED or sum(row not in unreadable for row in stray) > STRAY_SHARE * readable:
        labels, stray = {}, list(rows)
    if stray:
        found.aside[f"images of {part.folder or 'the source'} without labels in their names"] = stray
    return labels


def _checked(found: NamedLabels, names: Sequence[str], plain: bool) -> NamedLabels | None:
    """Returns the labels with the problem that forbids to use them, if any; None if there is none or one label."""
    counts = Counter(found.labels.values())
    if len(counts) < 2:
        return None
    if plain:
        first = names[min(found.labels)].rpartition("/")[2]
        few = [label for label, count in counts.items() if count < _LEAST_FILES]
        spellings = defaultdict(list)
        for label in counts:
            spellings[label.casefold()].append(label)
        alike = next((each for each in spellings.values() if len(each) > 1), [])
        if few:
            found.problem = f"of the labels in names such as {first!r}, {few[0]!r} has one image only"
        elif alike:
            found.problem = f"the labels {alike[0]!r} and {alike[1]!r} in names differ by their case only"
    return found


def label_in(name: str, plain: bool = True) -> str | None:
    """Returns the label in the name of a file, such as `cat` of `cat.0.jpg`; None if there is none."""
    base = name.rsplit("/", 1)[-1]
    match = _NUMBERED.fullmatch(posixpath.splitext(base)[0] if is_image(base) else base)
    if match is None:
        return None
    label = match[1].strip()
    return label if not plain or _is_label(label) else None


def _is_label(label: str) -> bool:
    """Whether a text is a label beyond doubt."""
    if _SYNSET.fullmatch(label):
        return True
    tokens = _TOKEN.findall(label.lower())
    if _ENDS_IN_A_NUMBER.fullmatch(label) or any(map(_HASH.fullmatch, re.split(r"[ ._-]+", label))):
        return False
    if any(token.isdigit() and len(token) >= _DATE_DIGITS for token in tokens):
        return False
    split = split_name(label)
    if split and not split.rest:
        return False
    return any(not token.isdigit() and token not in _NO_LABELS for token in tokens)
