"""The histogram of the pixels of a version: that of its parent, without the rows that are gone."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.cluster.ray_tasks import map_tables
from pipeline.dataset.image_codec import decode
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.parquet import read_split_provenance
from pipeline.dataset.records import Rows
from pipeline.dataset.row_reader import load_index, read_images
from pipeline.ingestion.quality.pixel_facts import pixel_facts

_ROWS_AT_ONCE = 64
_SCHEMA = pa.schema([("histogram", pa.list_(pa.int64(), 768)), ("same", pa.bool_())])

Histogram = npt.NDArray[np.int64]


def histogram_without(uri: str, data: Manifest, whole: Histogram | None, gone: Mapping[str, Rows]) -> Histogram:
    """Returns int64 [768]: counts of the values of R, G and B over the rows of a data set but `gone`.

    data: the manifest of the data set at `uri`. whole: the histogram of all of its rows. gone: {split: rows}; they are
    decoded, or, without `whole`, all others. So they are if the library decodes them to other pixels than it did at
    ingest, and the difference would be wrong.
    """
    if whole is not None:
        lost, same = _histogram(uri, data, gone)
        if same:
            return whole - lost
    kept = {name: np.setdiff1d(np.arange(split.rows), gone.get(name, ())) for name, split in data.splits.items()}
    return _histogram(uri, data, kept)[0]


def _histogram(uri: str, data: Manifest, rows: Mapping[str, Rows]) -> tuple[Histogram, bool]:
    """Returns (the histogram of some rows, whether all of them have the pixels that they had at ingest)."""
    parts = []
    for split, some in rows.items():
        if len(some):
            hashes = read_split_provenance(uri, data.split(split), ["pixel_sha256"])["pixel_sha256"]
            hashes = hashes.take(pa.array(some)).to_pylist()
            for start in range(0, len(some), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                parts.append((split, some[part], hashes[part]))
    found = map_tables(_Decoding(uri, data), parts, _SCHEMA, lambda done: None, True)
    table = pa.concat_tables([_SCHEMA.empty_table(), *found])
    histograms = np.array(table["histogram"].to_pylist(), dtype=np.int64).reshape(-1, 768)
    return histograms.sum(axis=0), all(table["same"].to_pylist())


@dataclass(frozen=True)
class _Decoding:
    """Decodes some rows of a split; may run in a Ray task."""

    uri: str
    data: Manifest

    def __call__(self, part: tuple[str, Rows, list[bytes]]) -> pa.Table:
        """Returns a table of _SCHEMA with one row. part: a split, rows of it, and the SHA-256 of their pixels."""
        split, rows, hashes = part
        histogram, same = np.zeros(768, dtype=np.int64), True
        for image, expected in zip(
            read_images(load_index(self.uri, self.data.split(split)), rows), hashes, strict=True
        ):
            facts = pixel_facts(decode(image))
            histogram += facts.histogram
            same = same and facts.sha256 == expected.hex()
        return pa.table({"histogram": [histogram.tolist()], "same": [same]}, schema=_SCHEMA)
