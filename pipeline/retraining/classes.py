"""Classes that change between the champion and the data: what a person says of them, and what has changed.

Names are matched exactly; then by the lines of a mapping file; then by spelling, where one missing name and one new
name differ in case, spaces, hyphens and underscores alone. A class that is missing then ends the run before anything is
trained, unless its removal is allowed: its folder may be gone by accident.
"""

import difflib
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.core.errors import DamagedError, DatasetError, RecipeError
from pipeline.core.shares import counted
from pipeline.dataset.manifest import Manifest
from pipeline.ingestion.corrections.cells import from_cell
from pipeline.ingestion.corrections.spreadsheet import read_spreadsheet
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.storage import files

Moved = Callable[[list[str]], Mapping[str, str]]
_COLUMNS = ("old", "new")
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class ClassRules:
    """How a run treats classes that change. Part of a run's identity: no field may be renamed."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """{earlier name: name now}; several names that become one are merged."""

    removed: tuple[str, ...] = ()
    """Classes that may be missing."""

    new_class_recall: float | None = None
    """Least recall of a class that the champion doesn't know, in [0, 1): the lower bound of its interval must lie
    above. None is chance, 1 / number of classes, as the first model must beat a guess."""

    shared_drop: float = 0.02
    """Where classes were added, removed or merged, the most that top-1 may fall on those that both models know, in
    [0, 1): the whole interval of the difference must lie above. 0 asks for a gain, as everywhere else."""

    def __post_init__(self) -> None:
        for name in ("new_class_recall", "shared_drop"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise RecipeError(f"{name.replace('_', '-')}={value:g} must lie in [0, 1)")

    def remembering(self, recorded: Mapping[str, Any] | None) -> "ClassRules":
        """Returns the rules with those of an earlier decision, which hold until a person gives others.

        recorded: the value `classes` of its `decision.json`; None if there is none.
        """
        earlier = (recorded or {}).get("rules", {"renamed": {}, "removed": []})
        given = {*self.renamed, *self.removed}
        renamed = {old: new for old, new in earlier["renamed"].items() if old not in given} | dict(self.renamed)
        kept = [name for name in earlier["removed"] if name not in self.renamed]
        return replace(self, renamed=renamed, removed=tuple(sorted({*kept, *self.removed})))

    @property
    def text(self) -> str:
        """The rules in words, for the plan: `'tabby' is now 'cat'; may be missing: 'fish'`."""
        parts = [f"{old!r} is now {new!r}" for old, new in sorted(self.renamed.items())]
        parts = [*parts[:_SHOWN], *([f"{len(parts) - _SHOWN:,} more"] if len(parts) > _SHOWN else [])]
        return "; ".join(parts + ([f"may be missing: {_named(self.removed)}"] if self.removed else []))

    @property
    def is_default(self) -> bool:
        """Whether nothing is said."""
        return self == ClassRules()


def read_class_file(uri: str) -> tuple[dict[str, str], list[str]]:
    """Returns ({earlier name: name now}, names of removed classes) of a mapping file.

    A CSV with the columns `old` and `new`, where an empty `new` is a removal, or JSON: {"old": "new", "gone": null}.
    Raises SourceError or RecipeError for a file that can't be used.
    """
    if files.kind(uri) != "file":
        raise RecipeError(f"classes={uri}: no such file; give a CSV with the columns old,new, or JSON")
    pairs = _json_pairs(uri) if uri.lower().endswith(".json") else _csv_pairs(uri)
    renamed, removed = dict[str, str](), list[str]()
    for place, old, new in pairs:
        if not old:
            raise RecipeError(f"classes={uri}: {place} has no old name; give old,new")
        if old in renamed or old in removed:
            raise RecipeError(f"classes={uri}: {place} says again what becomes of {old!r}; keep one of the lines")
        if not new:
            removed.append(old)
        elif new != old:
            renamed[old] = new
    return renamed, removed


def _csv_pairs(uri: str) -> list[tuple[str, str, str]]:
    header, lines = read_spreadsheet(uri, _COLUMNS)
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise RecipeError(
            f"classes={uri}: no column {missing[0]!r} in the first line ({', '.join(header)[:80]}); begin with old,new"
        )
    places = [header.index(name) for name in _COLUMNS]
    found = []
    for number, cells in lines:
        old, new = (from_cell(cells[at]).strip() if at < len(cells) else "" for at in places)
        if old or new:
            found.append((f"line {number}", old, new))
    return found


def _json_pairs(uri: str) -> list[tuple[str, str, str]]:
    try:
        values = files.read_json(uri)
    except DamagedError as error:
        raise RecipeError(f"classes={uri}: not JSON ({error.__cause__ or error}); give {{OLD: NEW}}") from error
    if not isinstance(values, dict) or not all(new is None or isinstance(new, str) for new in values.values()):
        raise RecipeError(f'classes={uri}: must be {{"OLD": "NEW", "REMOVED": null}}')
    return [(f"{old!r}", old, new or "") for old, new in values.items()]


def compare_classes(
    known: tuple[str, ...],
    data: Manifest,
    given: ClassRules,
    rules: ClassRules,
    before: Manifest | None = None,
    find_moved: Moved = lambda missing: {},
) -> ClassMap:
    """Returns which class of a data set each of the champion's classes is.

    known: the champion's. given: what is said now. rules: the same, with what was said before. before: the champion's
    data set, None if it isn't another one. find_moved: called with the names of missing
    classes; returns {name: class where its images are now}, for the message.

    Raises DatasetError, with the names and the remedy, if a class of the champion is missing or has no training or no
    validation image left, and for a line of the mapping that contradicts the source.
    """
    _check_lines(known, data.classes, given)
    renamed = {old: new for old, new in rules.renamed.items() if old not in data.classes}
    found = ClassMap(known, data.classes, renamed | _by_spelling(ClassMap(known, data.classes, renamed), rules))
    missing = [name for name in found.removed if found.name_since(name) not in rules.removed]
    missing = [name for name in missing if name not in rules.removed]
    if missing:
        raise DatasetError(_message(missing, found, data.name, find_moved(missing)))
    for split, kind in (("train", "training"), ("val", "validation")):
        if emptied := _emptied(found, data, before, split):
            raise DatasetError(
                f"{data.name}: no {kind} image is left of {_named(emptied)}, which the champion knows; bring the "
                "images back, or take away all images of the class and give --allow-removed"
            )
    return found


def rules_to_keep(rules: ClassRules, found: ClassMap) -> dict[str, Any]:
    """Returns the rules that later runs remember, as JSON: those about names that the source doesn't have now.

    A class that is back may vanish by accident once more.
    """
    return {
        "renamed": {old: new for old, new in sorted(rules.renamed.items()) if old not in found.classes},
        "removed": [name for name in rules.removed if name not in found.classes],
    }


def as_json(found: ClassMap, rules: ClassRules) -> dict[str, Any] | None:
    """Returns the value `classes` of `decision.json`; None where nothing has changed and nothing was said."""
    rest = rules_to_keep(rules, found)
    changed = {
        "added": list(found.added),
        "removed": list(found.removed),
        "renamed": found.other_names,
        "merged": found.merged,
    }
    if not any((*changed.values(), *rest.values())):
        return None
    return {"text": change_text(found), **changed, "rules": rest}


def change_text(found: ClassMap) -> str:
    """Returns what has changed, in words: `new class 'owl'; 'tabby' is now 'cat'`; "" if only the order has."""
    parts = []
    if found.added:
        parts.append(f"{'new class' if len(found.added) == 1 else 'new classes'} {_named(found.added)}")
    if found.removed:
        parts.append(f"removed {_named(found.removed)}")
    renamed = [f"{old!r} is now {new!r}" for old, new in found.other_names.items()]
    merged = [f"{_named(old)} are now {new!r}" for new, old in found.merged.items()]
    for each in (renamed, merged):
        parts += [*each[:_SHOWN], *([f"and {len(each) - _SHOWN:,} more"] if len(each) > _SHOWN else [])]
    return "; ".join(parts)


def _check_lines(known: tuple[str, ...], classes: tuple[str, ...], given: ClassRules) -> None:
    found = ClassMap(known, classes, given.renamed)
    for old in [name for name in known if name in given.renamed]:
        new = found.name_since(old)
        if old in classes:
            raise DatasetError(
                f"classes: {old!r} is to be called {given.renamed[old]!r} and is still a class of the source; rename "
                "its folder or label there, or take the line out"
            )
        if new not in classes and new not in given.removed:
            near = difflib.get_close_matches(new, classes, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the source has {_named(classes)}"
            raise DatasetError(f"classes: {old!r} is to be called {new!r}, which is no class of the source{hint}")


def _by_spelling(found: ClassMap, rules: ClassRules) -> dict[str, str]:
    """Returns {missing name: new name} of the names that are spelt alike, where there is one of each."""
    missing = [name for name in found.removed if name not in rules.removed]
    old, new = (Counter(map(_spelling, names)) for names in (missing, found.added))
    by_spelling = {_spelling(name): name for name in found.added}
    return {name: by_spelling[key] for name in missing if old[key := _spelling(name)] == new[key] == 1}


def _spelling(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()


def _emptied(found: ClassMap, data: Manifest, before: Manifest | None, split: str) -> list[str]:
    """Returns the shared classes that had images in a split of the data set before, and have none there now."""
    if before is None:
        return []
    had = {found.name_since(name) for name in _present(before, split)}
    has = _present(data, split)
    shared = [data.classes[label] for label in found.shared]
    return [name for name in shared if name in had and name not in has]


def _present(data: Manifest, split: str) -> set[str]:
    """Returns the classes that have rows in a split; none if the data set lacks it."""
    if split not in data.splits:
        return set()
    return {name for name, rows in zip(data.classes, data.splits[split].rows_per_class, strict=True) if rows}


def _message(missing: list[str], found: ClassMap, source: str, moved: Mapping[str, str]) -> str:
    shown = missing[:_SHOWN]
    names = " ".join(map(shlex.quote, shown)) + (" ..." if len(missing) > _SHOWN else "")
    # a shell or an option takes these names for something else
    is_plain = all(name.isprintable() and not name.startswith("-") for name in shown)
    removal = f"--allow-removed {names} if that is meant, or " if is_plain else ""
    renames = f", which has the new {_named(found.added)}" if found.added else ""
    lines = "one for each that has another name"
    if moved:
        lines = " ".join(f"{old},{new}" for old, new in list(moved.items())[:_SHOWN]) + ", where the images are now"
    lines += "" if is_plain else ", and nothing after the comma for one that is meant to be removed"
    are = "is" if len(missing) == 1 else "are"
    return (
        f"{counted(len(missing), 'class', 'classes')} of the champion {are} missing in {source}{renames}: "
        f"{_named(missing)}; bring the images back, or give {removal}--classes FILE with the line old,new and {lines}"
    )


def _named(names: Any) -> str:
    shown = [f"{name!r}" for name in names[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
