"""Verdicts of people become changes of a data set's rows, after each has been checked."""

import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import DatasetError, SourceError
from pipeline.core.shares import counted
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_split_provenance
from pipeline.dataset.version import BY_PEOPLE, Changes
from pipeline.ingestion.corrections.reviewed import removed_keys, reviewed_rows
from pipeline.ingestion.corrections.verdict_file import KEEP, REMOVE, Verdict

_log = logging.getLogger(__name__)
_MOST_PROBLEMS = 20  # that are told one by one
_MOST_NAMES = 10_000  # that an unknown one is compared with

# Nothing of who decided and when: the same verdicts give the same data set.
KEPT, REMOVED, RELABELLED = f"{BY_PEOPLE} kept", f"{BY_PEOPLE} removed", f"{BY_PEOPLE} was {{}}"


@dataclass(frozen=True)
class VerdictCounts:
    """What verdicts change, as numbers of rows."""

    relabelled: int = 0
    removed: int = 0
    kept: int = 0
    """Labels that a person has found right, which nobody had looked at before."""
    as_before: int = 0
    """Verdicts that the data set follows already."""


@dataclass(frozen=True)
class _Rows:
    """The rows of a split that verdicts name."""

    keys: pa.ChunkedArray  # of the whole split
    classes: dict[str, str]  # {key: its class now}
    places: dict[str, int]  # {key: row}
    reviewed: frozenset[int]  # rows with a verdict of before
    removed: frozenset[str]  # keys that the verdicts name and an earlier verdict has removed


@dataclass(frozen=True)
class _Decision:
    """A verdict that can be carried out. row: None for one that is removed already."""

    split: str
    row: int | None
    before: str
    after: str | None  # class; None to remove it
    is_reviewed: bool


def decide(uri: str, data: Manifest, verdicts: list[Verdict], file: str) -> tuple[dict[str, Changes], VerdictCounts]:
    """Returns {split: changes of its rows} and what they amount to.

    data: the resolved manifest of the data set at `uri`. file: the name of the file of verdicts, for messages. Raises
    SourceError, with the line and the nearest names, for a verdict on an unknown or ambiguous row, on one that is named
    twice or has another label by now, or with an unknown class, and DatasetError if a split, or a class of train, would
    have no row left.
    """
    rows = {name: _named(uri, data, name, verdicts) for name in data.splits}
    decisions, problems = list[_Decision](), list[str]()
    lines = dict[tuple[str, str], int]()
    for each in verdicts:
        try:
            split = _split_of(each, data, rows)
            if (earlier := lines.setdefault((split, each.key), each.line)) != each.line:
                raise SourceError(f"key {each.key!r} has a verdict in line {earlier} already; leave one of them out")
            decisions.append(_decision(each, split, data.classes, rows[split]))
        except SourceError as error:
            problems.append(f"line {each.line}: {error}")
    _raise_problems(file, problems, len(verdicts))
    _check_left(data, decisions)
    return _changes(decisions), _counts(decisions)


def _named(uri: str, data: Manifest, split: str, verdicts: list[Verdict]) -> _Rows:
    wanted = pa.array(dict.fromkeys(each.key for each in verdicts if each.split in ("", split)), pa.string())
    table = read_split_provenance(uri, data.split(split), ["key", "label"])
    rows = np.flatnonzero(pc.is_in(table["key"], value_set=wanted).to_numpy())
    found = table.take(pa.array(rows)).to_pydict()
    places = dict(zip(found["key"], rows.tolist(), strict=True))
    classes = {key: data.classes[label] for key, label in zip(found["key"], found["label"], strict=True)}
    removed = wanted.filter(pc.is_in(wanted, value_set=removed_keys(uri, data.split(split)))).to_pylist()
    reviewed = frozenset(reviewed_rows(uri, data.split(split)).tolist())
    return _Rows(table["key"], classes, places, reviewed, frozenset(removed))


def _split_of(verdict: Verdict, data: Manifest, rows: Mapping[str, _Rows]) -> str:
    """Returns the split of a verdict's row. Raises SourceError unless there is one."""
    if verdict.split and verdict.split not in data.splits:
        raise SourceError(f"split {verdict.split!r} isn't in the data set; it holds {', '.join(data.splits)}")
    among = [verdict.split] if verdict.split else list(data.splits)
    found = [name for name in among if verdict.key in rows[name].places]
    found = found or [name for name in among if verdict.key in rows[name].removed]
    if len(found) > 1:
        raise SourceError(f"key {verdict.key!r} is in {' and in '.join(found)}; say which in a column 'split'")
    if not found:
        near = _nearest(verdict.key, (key for name in among for key in _alike(verdict.key, rows[name].keys)))
        raise SourceError(f"key {verdict.key!r} isn't in {verdict.split or 'the data set'}{near}")
    return found[0]


def _decision(verdict: Verdict, split: str, classes: tuple[str, ...], rows: _Rows) -> _Decision:
    """Returns what a verdict says. Raises SourceError for an unknown class, or a row with another label by now."""
    if verdict.is_class and verdict.verdict not in classes:
        near = _nearest(verdict.verdict, classes) or f"; the classes are {', '.join(classes[:5])}, ..."
        raise SourceError(f"verdict {verdict.verdict!r} is neither {KEEP} nor {REMOVE} nor a class{near}")
    is_removal = not verdict.is_class and verdict.verdict == REMOVE
    if verdict.key not in rows.places:
        if not is_removal:
            raise SourceError(f"key {verdict.key!r} was removed by an earlier verdict; leave the line out")
        return _Decision(split, None, "", None, True)
    row, now = rows.places[verdict.key], rows.classes[verdict.key]
    after = None if is_removal else verdict.verdict if verdict.is_class else now
    if verdict.given and verdict.given != now and not (verdict.is_class and after == now):
        raise SourceError(
            f"key {verdict.key!r} is labelled {now!r} by now, and {verdict.given!r} in the file; leave the line out, "
            "or evaluate the newest version and look again"
        )
    return _Decision(split, row, now, after, row in rows.reviewed)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _alike(key: str, keys: pa.ChunkedArray) -> list[str]:
    """Returns some keys that an unknown one may stand for: those of its file name, of its folder, or any."""
    folder, _, name = key.rpartition("/")
    for chosen in (pc.ends_with(keys, name), pc.starts_with(keys, folder), pc.is_valid(keys)):
        some = keys.filter(chosen).slice(0, _MOST_NAMES)
        if len(some):
            return list(some.to_pylist())
    return []


def _raise_problems(file: str, problems: list[str], num_verdicts: int) -> None:
    if not problems:
        return
    if len(problems) == 1:
        raise SourceError(f"{file}: {problems[0]}")
    for each in problems[:_MOST_PROBLEMS]:
        _log.warning("%s: %s", file, each)
    raise SourceError(
        f"{file}: {len(problems):,} of {counted(num_verdicts, 'verdict')} can't be used, the first in {problems[0]}"
    )


def _check_left(data: Manifest, decisions: list[_Decision]) -> None:
    """Raises DatasetError if a split, or a class of train, would have no row left."""
    for name, split in data.splits.items():
        counts = dict(zip(data.classes, split.rows_per_class, strict=True))
        for each in decisions:
            if each.split == name and each.row is not None:
                counts[each.before] -= 1
                if each.after is not None:
                    counts[each.after] += 1
        if not any(counts.values()):
            raise DatasetError(f"the verdicts remove every row of {name}; keep some of them")
        for kind, before in zip(data.classes, split.rows_per_class, strict=True):
            if name == "train" and before and not counts[kind]:
                raise DatasetError(
                    f"class {kind!r}: the verdicts leave none of its {before:,} training images; keep some"
                )


def _changes(decisions: list[_Decision]) -> dict[str, Changes]:
    changes = {}
    for split in dict.fromkeys(each.split for each in decisions):
        mine = [each for each in decisions if each.split == split and each.row is not None]
        gone = [each.row for each in mine if each.after is None]
        said = [each for each in mine if each.after is not None and (each.after != each.before or not each.is_reviewed)]
        reasons = [KEPT if each.after == each.before else RELABELLED.format(each.before) for each in said]
        changes[split] = Changes(
            pa.table({"row": pa.array(gone, pa.int64()), "reason": pa.array([REMOVED] * len(gone), pa.string())}),
            pa.table(
                {
                    "row": pa.array([each.row for each in said], pa.int64()),
                    "class": pa.array([each.after for each in said], pa.string()),
                    "reason": pa.array(reasons, pa.string()),
                }
            ),
        )
    return changes


def _counts(decisions: list[_Decision]) -> VerdictCounts:
    counts = VerdictCounts()
    for each in decisions:
        if each.row is not None and each.after is None:
            counts = replace(counts, removed=counts.removed + 1)
        elif each.row is not None and each.after != each.before:
            counts = replace(counts, relabelled=counts.relabelled + 1)
        elif each.is_reviewed:
            counts = replace(counts, as_before=counts.as_before + 1)
        else:
            counts = replace(counts, kept=counts.kept + 1)
    return counts
