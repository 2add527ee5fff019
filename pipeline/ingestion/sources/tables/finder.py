"""Finds the files that the values of a column name: with or without folders and suffix, and from any root."""

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

_SAMPLE = 1000
_ENOUGH = 0.5  # share of a sample that must be found before fewer folders of the values are compared


@dataclass(frozen=True)
class Naming:
    """How the values of a column name files: without their first folders, and with or without suffix."""

    skipped: int  # folders at the start of each value that aren't compared, such as those of another machine
    has_suffix: bool


@dataclass
class Finder:
    """The files of a source, looked up by the ends of their paths."""

    names: Sequence[str]  # relative to the source
    images: Container[int]  # indices of the files that are images
    _tails: dict[tuple[int, bool], dict[str, list[int]]] = field(default_factory=dict)

    def naming(self, values: Sequence[str]) -> tuple[Naming, int]:
        """Returns how a column's values name files, and how many files a sample of the values names.

        All values are read in one way: were each value free to match by its base name, `cat/1.jpg` that is missing
        would be taken for `dog/1.jpg`.
        """
        distinct = list(dict.fromkeys(values))
        sample = distinct[:: max(1, len(distinct) // _SAMPLE)]
        deepest = max((len(_parts(value)) for value in sample), default=0)
        best, most = Naming(0, True), 0
        for skipped in range(deepest):
            for has_suffix in (True, False):
                naming = Naming(skipped, has_suffix)
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
        return self._by_tail(len(parts), naming.has_suffix).get("/".join(parts), [])

    def names_file(self, value: str) -> bool:
        """Whether a value names a file with its suffix, read with all of its folders or with none."""
        deepest = len(_parts(value)) - 1
        return any(self.find(value, Naming(skipped, True)) for skipped in {0, max(0, deepest)})

    def _by_tail(self, depth: int, has_suffix: bool) -> dict[str, list[int]]:
        """Returns {the last `depth` parts of a path: its files}; without suffixes of images only."""
        if (depth, has_suffix) not in self._tails:
            tails = defaultdict(list)
            for row, name in enumerate(self.names):
                if name.count("/") >= depth - 1 and (has_suffix or row in self.images):
                    tail = "/".join(name.split("/")[-depth:])
                    folder, slash, base = tail.rpartition("/")
                    tails[tail if has_suffix else folder + slash + base.rpartition(".")[0]].append(row)
            self._tails[depth, has_suffix] = dict(tails)
        return self._tails[depth, has_suffix]


def _parts(value: str) -> list[str]:
    return [part for part in value.strip().replace("\\", "/").split("/") if part not in ("", ".", "..")]
