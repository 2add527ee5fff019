"""The digest of a source: a hash over a line for each of its files, sorted, in bounded memory."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.ingestion.sorting.external_sort import sorted_parts

_DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_AT_ONCE = 1 << 16
_LINES = pa.schema([("line", pa.string())])


def source_digest(lines: Iterable[pa.Array]) -> str:
    """Returns the SHA-256 (hex) of the sorted lines, joined by newlines. lines: arrays of texts."""
    digest, first = hashlib.sha256(), True
    for part in sorted_parts(_tables(lines), "line"):
        for chunk in part["line"].chunks:
            text = _joined(chunk)
            digest.update(text[1:] if first else text)
            first = False
    return digest.hexdigest()


def stored_lines(split: str, rows: pa.Table) -> pa.Array:
    """Returns the lines of rows that were stored. rows: key, label and source_sha256 of their provenance."""
    table = rows.combine_chunks()
    key, label, sha256 = (table[name].chunk(0) for name in ("key", "label", "source_sha256"))
    return pc.binary_join_element_wise(split, key, label.cast(pa.string()), _hex(sha256), " ")


def lines_of(texts: Iterable[str]) -> Iterator[pa.Array]:
    """Yields lines that were made one by one, for `source_digest`."""
    remaining = iter(texts)
    while part := list(islice(remaining, _AT_ONCE)):
        yield pa.array(part, pa.string())


def _tables(lines: Iterable[pa.Array]) -> Iterator[pa.Table]:
    for part in lines:
        if len(part):
            yield pa.Table.from_arrays([part], schema=_LINES)


def _hex(digests: pa.FixedSizeBinaryArray) -> pa.Array:
    """Returns bytes as texts of their hexadecimal digits."""
    width = digests.type.byte_width
    data = np.frombuffer(digests.buffers()[1], dtype=np.uint8)[digests.offset * width :][: len(digests) * width]
    texts = np.stack([_DIGITS[data >> 4], _DIGITS[data & 15]], axis=1)
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * width), len(digests), [None, pa.py_buffer(texts)])
    return fixed.cast(pa.binary()).cast(pa.string())


def _joined(lines: pa.Array) -> memoryview:
    """Returns the lines, a newline before each."""
    after = pc.binary_join_element_wise("", lines, "\n")
    ends = np.frombuffer(after.buffers()[1], dtype=np.int32)[after.offset :][: len(after) + 1]
    return memoryview(after.buffers()[2])[int(ends[0]) : int(ends[-1])]
