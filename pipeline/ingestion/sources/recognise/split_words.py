"""Names of folders that stand for a split: `train`, `Training_Set`, `images_val`, `train2017`, `seg_test`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validate", "validation", "dev", "development", "eval", "evaluation", "vld"),
    "test": ("test", "tests", "testing", "tst"),
}
# Abbreviations that are more often something else, such as a country: only beside the name of another split.
_SHORT = {"tr": "train", "va": "val", "ev": "val", "te": "test", "ts": "test"}
# Images that have no labels on purpose.
_UNLABELLED = (
    "unlabeled", "unlabelled", "unlabel", "unlab", "unsup", "unsupervised", "pred", "predict", "prediction",
    "predictions", "submission",
)  # fmt: skip
# Words that say no more than that there are images.
_FILLERS = (
    "set", "sets", "split", "splits", "data", "dataset", "datasets", "image", "images", "img", "imgs", "im", "photo",
    "photos", "pic", "pics", "picture", "pictures", "jpg", "jpgs", "jpeg", "jpegs", "png", "pngs", "file", "files",
    "folder", "folders", "dir", "sample", "samples", "example", "examples", "class", "classes", "my", "the", "new",
    "final", "full", "all", "raw", "resized", "cropped", "public", "private", "labeled", "labelled", "v", "px", "x",
)  # fmt: skip
# Folders of pictures and texts that describe other images: of segmentation and detection.
_ANNOTATIONS = frozenset((
    "annotation", "annotations", "mask", "masks", "trimap", "trimaps", "segmentation", "segmentations", "segmaps",
    "groundtruth", "ground", "truth", "gt", "bbox", "bboxes", "labels",
))  # fmt: skip
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_KNOWN = {**_SPLIT_OF, **dict.fromkeys(_UNLABELLED, "unlabelled")}
# These may be written in one with the word, as in `trainset` and `imgtrain`.
_JOINED_FILLERS = "sets?|data|datasets?|images?|imgs?|splits?|folder|dir"
_JOINED = re.compile(
    rf"(?:{_JOINED_FILLERS})?({'|'.join(sorted(_KNOWN, key=len, reverse=True))})(?:{_JOINED_FILLERS})?"
)
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_]+")
# Two words in one name: the images of which split they are. Other pairs, as in `train_test_split`, are no split.
_PAIRS = {frozenset({"train", "val"}): "train", frozenset({"test", "val"}): "test"}

UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class SplitName:
    """The split that a folder's name stands for."""

    split: str  # "train", "val", "test", or UNLABELLED
    rest: str = ""  # the other words of the name; "" if they say nothing
    short: bool = False  # whether the word is an abbreviation with other meanings


def split_name(name: str) -> SplitName | None:
    """Returns the split in the name of a folder or file, or None. Case and separators don't matter."""
    splits, short, rest = [], [], []
    for token in (match.group().lower() for match in _TOKEN.finditer(name)):
        match = _JOINED.fullmatch(token)
        if match:
            splits.append(_KNOWN[match.group(1)])
        elif token in _SHORT:
            short.append(_SHORT[token])
        elif token not in _FILLERS and not token.isdigit():
            rest.append(token)
    found = frozenset(splits or short)
    split = next(iter(found)) if len(found) == 1 else _PAIRS.get(found)
    return SplitName(split, " ".join(rest), not splits) if split else None


def is_generic(name: str) -> bool:
    """Whether a name says no more than that there are images: `images`, `jpg_files`, `data`."""
    tokens = [match.group().lower() for match in _TOKEN.finditer(name)]
    return bool(tokens) and all(token in _FILLERS for token in tokens)


def is_annotation(name: str) -> bool:
    """Whether a folder's name says that its files describe the images of another one: `annotations`, `masks`."""
    tokens = [match.group().lower() for match in _TOKEN.finditer(name)]
    return any(token in _ANNOTATIONS for token in tokens) and all(
        token in _ANNOTATIONS or token in _FILLERS or token.isdigit() for token in tokens
    )


def split_of(name: str) -> str | None:
    """Returns the split that a word or name stands for on its own: "train", "val", "test" or None."""
    found = split_name(name)
    return found.split if found and not found.rest and not found.short and found.split != UNLABELLED else None


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """Returns {name: "train", "val", "test" or UNLABELLED} for those of the folders of one level that are splits.

    A name with other words, such as `seg_train`, is one only beside another with the same words, `seg_test`: alone it
    may be a class, such as `bullet_train`. An abbreviation, such as `tr`, is one only if all names of the level are
    splits.
    """
    names = list(names)
    found = {name: parsed for name in names if (parsed := split_name(name))}
    by_rest: dict[str, set[str]] = {}
    for parsed in found.values():
        by_rest.setdefault(parsed.rest, set()).add(parsed.split)
    sure = {name: parsed for name, parsed in found.items() if not parsed.rest or len(by_rest[parsed.rest]) > 1}
    if len(sure) < len(names) or len({parsed.split for parsed in sure.values()}) < 2:
        sure = {name: parsed for name, parsed in sure.items() if not parsed.short}
    return {name: parsed.split for name, parsed in sure.items()}
