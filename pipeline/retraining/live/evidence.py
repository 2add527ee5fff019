"""What is known of models in use: stored answers of one or two versions, joined to late labels and counted."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import RegistryError
from pipeline.models import checkpoint
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.retraining import registry
from pipeline.retraining.live import store
from pipeline.retraining.live.labels import LabelCounts, stored_labels
from pipeline.retraining.live.rules import Alone, Pair
from pipeline.retraining.workspace import renames_of
from pipeline.storage import files

log = logging.getLogger(__name__)

DAYS = 30  # of a month in use
_TIME = pa.field("time", pa.float64())
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """Counts of what a registry's models answered. An image that was predicted several times under a key counts once,
    the newest time. Labels of keys that name several images don't count.

    place: URI of the registry. window: number of newest images that count for failures, disagreement and seconds; None
    for all. Labels count for all images, and once more for the newest DAYS of the version that have some.
    """

    place: str
    window: int | None = None

    @cached_property
    def labels(self) -> tuple[dict[str, str], LabelCounts]:
        """{key: label} of the files of labels, and what was found there."""
        return stored_labels(self.place)

    @cached_property
    def _uris(self) -> list[str]:
        """The URIs of all records, listed once."""
        return store.traffic_uris(self.place)

    def _uris_of(self, versions: Sequence[str]) -> list[str]:
        """Returns the URIs of the records in which one of these versions has a part."""
        return [uri for uri in self._uris if any(f"/{version}/" in uri for version in versions)]

    @cached_property
    def _records(self) -> dict[str, tuple[store.Traffic, pa.Table]]:
        """{URI: record}, each read once."""
        return {}

    def _record(self, uri: str) -> tuple[store.Traffic, pa.Table]:
        """Returns a record; a damaged one, which ends no review, as one without rows."""
        if uri not in self._records:
            try:
                self._records[uri] = store.read_traffic(uri)
            except RegistryError as error:
                log.warning("warning: %s; it doesn't count", error)
                self._records[uri] = store.Traffic("", "", 0.0), store.SCHEMA.empty_table()
        return self._records[uri]

    def inputs(self, versions: list[str]) -> dict[str, list[str]]:
        """Returns the places, below the registry, of all files that the counts of these versions rest on."""
        found = {"traffic": self._uris_of(versions), "labels": store.label_uris(self.place)}
        return {name: [files.relative(uri, self.place) for uri in each] for name, each in found.items()}

    def alone(self, version: str) -> Alone:
        """Returns the counts of one version, whichever role it had."""
        table = _newest([self._swapped(uri, version) for uri in self._uris_of([version])])
        labels, answered = self._known(table, (version,)), _valid(table["first"])
        labelled = answered & _valid(labels)
        right = labelled & _same(table["first"], labels)
        month, newest = self._month(table, labelled, version)
        recent = answered[self._first(table) :]
        return Alone(
            len(recent), int((~recent).sum()), int(labelled.sum()), int(right.sum()),
            (month, int(newest.sum()), int((newest & right).sum())),
        )  # fmt: skip

    def pair(self, first: str, second: str) -> Pair:
        """Returns the counts of two versions on the same images, whichever of them gave the answers out.

        A class that was renamed or merged between them is the same one.
        """
        folders = f"/{first}/{second}/", f"/{second}/{first}/"
        table = _newest([self._swapped(uri, first) for uri in self._uris if any(each in uri for each in folders)])
        renamed = self._renamed(first, second)
        labels = _under(self._known(table, (first, second)), renamed)
        answers = [_under(table[name], renamed) for name in ("first", "second")]
        answered = [_valid(each) for each in answers]
        both = answered[0] & answered[1]
        labelled = both & _valid(labels)
        one, other = (labelled & _same(each, labels) for each in answers)
        month, newest = self._month(table, labelled, first, second)
        recent = slice(self._first(table), None)
        failures = int((~answered[0][recent]).sum()), int((~answered[1][recent]).sum())
        return Pair(
            len(both[recent]), failures, int(both[recent].sum()), int((both & ~_same(*answers))[recent].sum()),
            _seconds(table.slice(recent.start)), int(labelled.sum()), (int(one.sum()), int(other.sum())),
            int((one & ~other).sum()), int((other & ~one).sum()), max(0.0, self._top1(second) - self._top1(first)),
            (month, int((newest & one & ~other).sum()), int((newest & other & ~one).sum())),
        )  # fmt: skip

    def _first(self, table: pa.Table) -> int:
        """Returns the first row of the window."""
        return 0 if self.window is None else max(0, len(table) - self.window)

    def _month(self, table: pa.Table, labelled: Bools, *versions: str) -> tuple[int, Bools]:
        """Returns the newest month with a label, and its labelled rows; 0 if there is none.

        Months of DAYS count from 1, from the creation of the newest version on: nothing that is measured moves them.
        """
        begin = max(registry.read_version(self.place, version).created for version in versions)
        months = 1 + np.maximum(0, (table["time"].to_numpy() - begin) // (DAYS * 86_400)).astype(np.int64)
        newest = int(months[labelled].max(initial=0))
        return newest, labelled & (months == newest)

    def label_counts(self, versions: list[str]) -> LabelCounts:
        """Returns what was found in the files of labels, with the labels that none of these versions has as a class, or
        of images that none of them was asked about.
        """
        labels, counts = self.labels
        if not labels:
            return counts
        names, keys = self._classes(tuple(versions)), pa.array(labels, pa.string())
        predicted = np.zeros(len(labels), dtype=np.bool_)
        for uri in self._uris_of(versions):
            predicted |= pa.compute.is_in(keys, value_set=self._record(uri)[1]["key"]).to_numpy(zero_copy_only=False)
        unknown = sum(label not in names for label in labels.values())
        return replace(
            counts, unknown=unknown, unpredicted=int((~predicted).sum()), ambiguous=len(self._ambiguous(versions))
        )

    def _swapped(self, uri: str, first: str) -> tuple[float, pa.Table]:
        """Returns time and usable rows of a record, with the version `first` in the columns of the first one."""
        head, table = self._record(uri)
        table = table.filter(pa.compute.is_null(table["error"]))
        if head.first != first:
            names = ["key", "second", "first", "second_seconds", "first_seconds", "error", "content"]
            table = table.select(names).rename_columns(store.SCHEMA.names)
        table = table.append_column(_TIME, pa.array(np.full(len(table), head.time)))
        return head.time, table.replace_schema_metadata(None)

    def _top1(self, version: str) -> float:
        return registry.read_version(self.place, version).top1

    def _known(self, table: pa.Table, versions: tuple[str, ...]) -> pa.ChunkedArray:
        """Returns the label of each row, null where there is none that one of the versions has as a class."""
        names, ambiguous = self._classes(versions), self._ambiguous(versions) if len(table) else ()
        labels = {key: label for key, label in self.labels[0].items() if label in names and key not in ambiguous}
        rows = pa.compute.index_in(table["key"], value_set=pa.array(labels, pa.string()))
        return pa.chunked_array([pa.array(labels.values(), pa.string())]).take(rows)

    def _ambiguous(self, versions: Sequence[str]) -> set[str]:
        """Returns the labelled keys under which these versions, or one of them, were given several images."""
        uris = self._uris_of(versions)
        if not uris or not self.labels[0]:
            return set()
        rows = pa.concat_tables([self._record(uri)[1].select(["key", "content"]) for uri in uris])
        rows = rows.replace_schema_metadata(None).filter(rows["content"].is_valid())
        rows = rows.filter(pa.compute.is_in(rows["key"], value_set=pa.array(self.labels[0], pa.string())))
        images = rows.group_by(["key", "content"]).aggregate([]).group_by("key").aggregate([("content", "count")])
        return set(images.filter(pa.compute.greater(images["content_count"], 1))["key"].to_pylist())

    def _renamed(self, first: str, second: str) -> dict[str, str]:
        """Returns {name of a class that one of the versions knows: the name that both have for it}."""
        renames = {**renames_of(self.place, first), **renames_of(self.place, second)}
        if not renames:
            return {}
        known = [self._classes((version,)) for version in (first, second)]
        shared = ClassMap((), tuple(known[0] & known[1]), renames)
        return {name: shared.name_since(name) for name in known[0] ^ known[1]}

    def _classes(self, versions: tuple[str, ...]) -> set[str]:
        found = set[str]()
        for version in versions:
            found.update(checkpoint.read_output(registry.version_uri(self.place, version)).classes)
        return found


def _newest(tables: list[tuple[float, pa.Table]]) -> pa.Table:
    """Returns the rows of all tables, of each image, a key and a content, the newest one.

    Rows without a content, of records of before, count as the newest image of their key.
    """
    if not tables:
        return store.SCHEMA.append(_TIME).empty_table()
    table = pa.concat_tables([each for _, each in sorted(tables, key=lambda each: each[0])])
    keys = table["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    contents = table["content"].combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    newest, known = np.full(len(table), -1, np.int64), contents >= 0
    newest[keys[known]] = contents[known]  # of several the last one
    codes = keys * np.int64(len(table) + 1) + np.where(known, contents, newest[keys])
    _, from_the_end = np.unique(codes[::-1], return_index=True)
    return table.take(pa.array(np.sort(len(codes) - 1 - from_the_end)))


def _under(column: pa.ChunkedArray, renamed: dict[str, str]) -> pa.ChunkedArray:
    """Returns a column of names with some of them replaced."""
    if not renamed:
        return column
    at = pa.compute.index_in(column, value_set=pa.array(renamed, pa.string()))
    return pa.compute.coalesce(pa.chunked_array([pa.array(renamed.values(), pa.string())]).take(at), column)


def _valid(column: pa.ChunkedArray) -> Bools:
    found: Bools = column.is_valid().to_numpy()
    return found


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> Bools:
    """Whether both are there and equal, row by row."""
    found: Bools = pa.compute.equal(one, other).fill_null(False).to_numpy()
    return found


def _seconds(table: pa.Table) -> tuple[float, float] | None:
    """Returns the seconds of both for an image, of the rows with both; None if there are none, or the first's are 0.

    The first decile: what slows a pass down, such as its start and other work of the machine, isn't the network's.
    """
    columns = [table[name].to_numpy() for name in ("first_seconds", "second_seconds")]
    known: Bools = ~(np.isnan(columns[0]) | np.isnan(columns[1]))
    if not known.any():
        return None
    first, second = (float(np.quantile(each[known], 0.1)) for each in columns)
    return (first, second) if first > 0 else None
