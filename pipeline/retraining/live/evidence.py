"""What is known of models in use: stored answers of one or two versions, joined to late labels and counted."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import RegistryError
from pipeline.models import checkpoint
from pipeline.retraining import registry
from pipeline.retraining.live import store
from pipeline.retraining.live.labels import LabelCounts, stored_labels
from pipeline.retraining.live.rules import Alone, Pair
from pipeline.storage import files

log = logging.getLogger(__name__)

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """Counts of what a registry's models answered. A key that was predicted several times counts once, the newest time.

    place: URI of the registry.
    """

    place: str

    @cached_property
    def labels(self) -> tuple[dict[str, str], LabelCounts]:
        """{key: label} of the files of labels, and what was found there."""
        return stored_labels(self.place)

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
        uris = store.traffic_uris(self.place)
        mine = [uri for uri in uris if any(f"/{version}/" in uri for version in versions)]
        found = {"traffic": mine, "labels": store.label_uris(self.place)}
        return {name: [store.relative(self.place, uri) for uri in each] for name, each in found.items()}

    def alone(self, version: str) -> Alone:
        """Returns the counts of one version, whichever role it had."""
        tables = [self._swapped(uri, version) for uri in store.traffic_uris(self.place) if f"/{version}/" in uri]
        table = _newest(tables)
        classes, labels = _column(table, "first"), self._known(table, (version,))
        answered = classes != ""
        labelled = answered & (labels != "")
        right = labelled & (classes == labels)
        return Alone(len(classes), int((~answered).sum()), int(labelled.sum()), int(right.sum()))

    def pair(self, first: str, second: str) -> Pair:
        """Returns the counts of two versions on the same images, whichever of them gave the answers out."""
        uris = [*store.traffic_uris(self.place, first, second), *store.traffic_uris(self.place, second, first)]
        table = _newest([self._swapped(uri, first) for uri in uris])
        one, other, labels = _column(table, "first"), _column(table, "second"), self._known(table, (first, second))
        failures = int((one == "").sum()), int((other == "").sum())
        both = (one != "") & (other != "")
        labelled = both & (labels != "")
        rights = [labelled & (each == labels) for each in (one, other)]
        return Pair(
            len(one), failures, int(both.sum()), int((both & (one != other)).sum()), _seconds(table),
            int(labelled.sum()), (int(rights[0].sum()), int(rights[1].sum())),
            int((rights[0] & ~rights[1]).sum()), int((rights[1] & ~rights[0]).sum()),
            max(0.0, self._top1(second) - self._top1(first)),
        )  # fmt: skip

    def label_counts(self, versions: list[str]) -> LabelCounts:
        """Returns what was found in the files of labels, with the labels that none of these versions has as a class."""
        labels, counts = self.labels
        if not labels:
            return counts
        names = self._classes(tuple(versions))
        predicted = set[str]()
        for uri in store.traffic_uris(self.place):
            predicted.update(self._record(uri)[1]["key"].to_pylist())
        unknown = sum(label not in names for label in labels.values())
        return replace(counts, unknown=unknown, unpredicted=len(labels.keys() - predicted))

    def _swapped(self, uri: str, first: str) -> tuple[float, pa.Table]:
        """Returns time and usable rows of a record, with the version `first` in the columns of the first one."""
        head, table = self._record(uri)
        table = table.filter(pa.compute.is_null(table["error"]))
        if head.first != first:
            names = ["key", "second", "first", "second_seconds", "first_seconds", "error"]
            table = table.select(names).rename_columns(store.SCHEMA.names)
        return head.time, table.replace_schema_metadata(None)

    def _top1(self, version: str) -> float:
        return registry.read_version(self.place, version).top1

    def _known(self, table: pa.Table, versions: tuple[str, ...]) -> npt.NDArray[np.object_]:
        """Returns the label of each row, "" where there is none that one of the versions has as a class."""
        labels, names = self.labels[0], self._classes(versions)
        found = [labels.get(key, "") for key in table["key"].to_pylist()]
        return np.array([label if label in names else "" for label in found], dtype=object)

    def _classes(self, versions: tuple[str, ...]) -> set[str]:
        found = set[str]()
        for version in versions:
            output = files.join(registry.version_uri(self.place, version), checkpoint.OUTPUT_NAME)
            found.update(files.read_json(output)["classes"])
        return found


def _newest(tables: list[tuple[float, pa.Table]]) -> pa.Table:
    """Returns the rows of all tables, of each key the newest one."""
    if not tables:
        return store.SCHEMA.empty_table()
    table = pa.concat_tables([each for _, each in sorted(tables, key=lambda each: each[0])])
    last = {key: row for row, key in enumerate(table["key"].to_pylist())}
    return table.take(pa.array(sorted(last.values()), pa.int64()))


def _column(table: pa.Table, name: str) -> npt.NDArray[np.object_]:
    return np.array(table[name].fill_null("").to_pylist(), dtype=object)


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
