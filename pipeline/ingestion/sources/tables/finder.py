"""Finds the files that the values of a column name: with or without folders and suffix, and from any root."""

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.ingestion.sources.recognise.file_kinds import is_image

_SAMPLE = 1000
_ENOUGH = 0.5  # share of a sample that must be found before fewer folders of the values are compared

# How the last part of a value is read: as it is; as a name without suffix; or loosely, whatever its case and its form
# of accents, and an image
# suffix for any other, such as IMG_1.JPG for img_1.jpg.
Spelling = Literal["exact", "stem", "loose"]


@dataclass(frozen=True)
class Naming:
    """How the values of a column name files."""

    skipped: int  # folders at the start of each value that aren't compared, such as those of another machine
    spelling: Spelling


@dataclass
class Finder:
    """The files of a source, looked up by the ends of their paths."""

    names: Sequence[str]  # relative to the source
    images: Container[int]  # indices of the files that are images
    _tails: dict[tuple[int, Spelling], dict[str, list[int]]] = field(default_factory=dict)

    def naming(self, values: Sequence[str]) -> tuple[Naming, int]:
        """Returns how a column's values name files, and how many files a sample of the values names.

        All values are read in one way: were each value free to match by its base name, `cat/1.jpg` that is missing
        would be taken for `dog/1.jpg`.
        """
        distinct = list(dict.fromkeys(values))
        sample = distinct[:: max(1, len(distinct) // _SAMPLE)]
        deepest = max((len(_parts(value)) for value in sample), default=0)
        best, most = Naming(0, "exact"), 0
        spellings: tuple[Spelling, ...] = ("exact", "stem", "loose")
        for skipped in range(deepest):
            for spelling in spellings:
                naming = Naming(skipped, spelling)
                found = len({row for value in sample for row in self.find(value, naming)[:1]})
                if found > most:
                    best, most = naming, found
            if most >= _ENOUGH * len(sample):
                break
        return best, most

    def find(self, value: str, naming: Naming) -> list[int]:
        """Returns the indices of the files that a value names; more than one where folders hold equal names."""
        parts = _parts(value)
        if not parts:
            return []
        parts = parts[min(naming.skipped, len(parts) - 1) :]
        tail = "/".join(parts)
        return self._by_tail(len(parts), naming.spelling).get(
            _loosely(tail) if naming.spelling == "loose" else tail, []
        )

    def names_file(self, value: str) -> bool:
        """Whether a value names a file with its suffix, read with all of its folders or with none."""
        deepest = len(_parts(value)) - 1
        return any(self.find(value, Naming(skipped, "exact")) for skipped in {0, max(0, deepest)})

    def _by_tail(self, depth: int, spelling: Spelling) -> dict[str, list[int]]:
        """Returns {the last `depth` parts of a path: its files}; without suffixes of images only."""
        if (depth, spelling) not in self._tails:
            tails = defaultdict(list)
            for row, name in enumerate(self.names):
                if name.count("/") >= depth - 1 and (spelling == "exact" or row in self.images):
                    tail = "/".join(name.split("/")[-depth:])
                    if spelling == "stem":
                        tail = posixpath.splitext(tail)[0]
                    tails[_loosely(tail) if spelling == "loose" else tail].append(row)
            self._tails[depth, spelling] = dict(tails)
        return self._tails[depth, spelling]


def _parts(value: str) -> list[str]:
    return [part for part in value.strip().replace("\\", "/").split("/") if part not in ("", ".", "..")]


def _loosely(name: str) -> str:
    # macOS writes an accent as a character of its own (NFD), most programs as one with its letter.
    return unicodedata.normalize("NFC", posixpath.splitext(name)[0] if is_image(name) else name).casefold()
