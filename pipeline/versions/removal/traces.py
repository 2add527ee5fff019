"""Finds byte strings of removed images in any file: proof that an image is gone.

A trace is a string of 64 bytes that says something: of at least 32 different values, so that runs of zeros and areas of
one colour don't count. Every trace of the images is found, wherever it begins: a trace in a file holds three blocks of
16 bytes in a row that begin at multiples of 16, so only where three such blocks in a row are known is anything compared
byte by byte. Parquet files whose columns are compressed are searched in their values.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.image_codec import JPEG_START
from pipeline.dataset.jpeg_segments import segments
from pipeline.dataset.parquet import read_table
from pipeline.dataset.png_data import PNG_START, pixel_chunks
from pipeline.storage import files

TRACE_BYTES = 64
_LEAST_VALUES = 32
_BLOCK, _IN_A_ROW = 16, 3
_CHUNK_BYTES = 8 << 20
_BLOCKS_AT_ONCE = 1 << 14  # their hashes stay in the cache
_TABLE_BITS = (16, 27)  # of the table of known blocks, least and most
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], dtype=np.uint64)  # odd, bits evenly mixed

Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
Ranges = tuple[Rows, Rows]
TRACE_SCHEMA = pa.schema([("file", pa.string()), ("offset", pa.int64()), ("of_pixels", pa.bool_())])


@dataclass(frozen=True)
class Traces:
    """The traces of some images, to be searched for."""

    known_blocks: npt.NDArray[np.bool_]  # by a block's place, see `_places`; some are True by chance
    of_pixels: Hashes  # [N], sorted: of each trace that lies in encoded pixels
    of_headers: Hashes  # [N], sorted: of the other traces

    def find(self, data: bytes | memoryview) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """Returns, of the traces in `data`, (offsets: int64 [N], whether they are of pixels: bool [N])."""
        array = np.frombuffer(data, np.uint8)
        offsets, of_pixels = [np.empty(0, np.int64)], [np.empty(0, bool)]
        for start, stop in self._suspects(array):
            hashes = _string_hashes(array[start:stop])
            for kind, known in ((True, self.of_pixels), (False, self.of_headers)):
                places = np.flatnonzero(_is_in(hashes, known))
                offsets.append(start + places)
                of_pixels.append(np.full(len(places), kind))
        return np.concatenate(offsets), np.concatenate(of_pixels)

    def _suspects(self, array: Bytes) -> Iterator[tuple[int, int]]:
        """Yields (start, stop) of the parts in which a trace may lie."""
        words = array[: len(array) // _BLOCK * _BLOCK].view("<u8").reshape(-1, 2)
        known = np.zeros(len(words), dtype=bool)
        for start in range(0, len(words), _BLOCKS_AT_ONCE):
            part = slice(start, start + _BLOCKS_AT_ONCE)
            known[part] = self.known_blocks.take(_places(words[part], len(self.known_blocks)))
        edges = np.flatnonzero(np.diff(known.astype(np.int8), prepend=0, append=0))
        for first, end in edges.reshape(-1, 2).tolist():
            start, stop = max(0, (first - 1) * _BLOCK + 1), min(len(array), (end + 1) * _BLOCK - 1)
            if end - first >= _IN_A_ROW and stop - start >= TRACE_BYTES:
                yield start, stop


def traces_of(images: Iterable[bytes]) -> Traces:
    """Returns the traces of encoded images, or of other bytes, which are taken for pixels."""
    none = np.empty(0, np.uint64)
    blocks, pixels, headers = [none.reshape(0, 2)], [none], [none]
    for image in images:
        array = np.frombuffer(image, np.uint8)
        if len(array) < TRACE_BYTES:
            continue
        words = _words(array)
        blocks.append(np.stack([words[:-8], words[8:]], axis=1))
        telling = _num_values(array) >= _LEAST_VALUES
        hashes, of_pixels = _string_hashes(array), _in_pixels(image)
        pixels.append(hashes[telling & of_pixels])
        headers.append(hashes[telling & ~of_pixels])
    every = np.concatenate(blocks)
    bits = int(np.clip(np.ceil(np.log2(max(1, 16 * len(every)))), *_TABLE_BITS))
    known = np.zeros(1 << bits, dtype=bool)
    known[_places(every, len(known))] = True
    return Traces(known, np.unique(np.concatenate(pixels)), np.unique(np.concatenate(headers)))


def pixel_ranges(image: bytes) -> list[tuple[int, int]]:
    """Returns (start, stop) of the encoded pixels in an image: after a JPEG's first header, or a PNG's image data.

    All of it if it is neither.
    """
    if image[:2] == JPEG_START:
        return [(max((segment.end for segment in segments(image)), default=0), len(image))]
    if image[:8] == PNG_START:
        return [(start, start + length) for start, length in pixel_chunks(image)]
    return [(0, len(image))]


def _in_pixels(image: bytes) -> npt.NDArray[np.bool_]:
    """Returns bool [L - 63]: for each string of 64 bytes whether it lies in encoded pixels, or holds all of them."""
    inside = np.zeros(len(image) - TRACE_BYTES + 1, dtype=bool)
    for start, stop in pixel_ranges(image):
        first, last = sorted((start, stop - TRACE_BYTES))  # fewer pixels than a string holds: strings with all of them
        inside[max(0, first) : last + 1] = True
    return inside


def _num_values(array: Bytes) -> Rows:
    """Returns int64 [L - 63]: the number of different values in each string of 64 bytes."""
    # A value counts in the strings that hold it and not the place before of the same value.
    order = np.argsort(array, kind="stable")
    same = np.diff(array[order].astype(np.int16), prepend=-1) == 0
    before = np.full(len(array), -1, dtype=np.int64)
    before[order[same]] = order[np.flatnonzero(same) - 1]
    places = np.arange(len(array))
    first = np.maximum(np.maximum(before + 1, places - TRACE_BYTES + 1), 0)
    changes = np.zeros(len(array) + 1, dtype=np.int64)
    np.add.at(changes, first, 1)
    np.add.at(changes, places + 1, -1)
    return np.cumsum(changes)[: len(array) - TRACE_BYTES + 1]


def _words(array: Bytes) -> Hashes:
    """Returns uint64 [L - 7]: the 8 bytes from each offset on, little-endian."""
    words = np.empty(len(array) - 7, dtype=np.uint64)
    for shift in range(min(8, len(words))):
        part = array[shift : shift + (len(array) - shift) // 8 * 8].view("<u8")
        words[shift::8] = part
    return words


def _places(blocks: Hashes, size: int) -> Rows:
    """Returns int64 [N]: the places of blocks of 16 bytes, uint64 [N, 2], in a table of `size`, a power of two."""
    mixed = blocks[:, 0] * _FACTORS[0]
    mixed ^= blocks[:, 1] * _FACTORS[1]
    mixed >>= np.uint64(65 - size.bit_length())  # of a product the upper bits depend on all bits below
    return mixed.view(np.int64)


def _string_hashes(array: Bytes) -> Hashes:
    """Returns uint64 [L - 63]: of each string of 64 bytes. Two strings have the same one by chance once in 2 ** 64."""
    words, count = _words(array), len(array) - TRACE_BYTES + 1
    hashes = np.zeros(max(0, count), dtype=np.uint64)
    for number in range(0, TRACE_BYTES, 8):
        hashes = (hashes ^ words[number : number + count]) * _FACTORS[0]
        hashes ^= hashes >> np.uint64(32)
    return hashes


def _is_in(values: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    return known[np.searchsorted(known, values).clip(max=len(known) - 1)] == values


# --- files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchedFile:
    """A file to be searched."""

    uri: str
    size: int  # bytes
    provenance: str = ""  # URI of the provenance of its rows, if it is a shard


@dataclass(frozen=True)
class TraceSearch:
    """Searches one file for traces; may run in a Ray task."""

    traces: Sequence[Traces]

    def __call__(self, file: SearchedFile) -> pa.Table:
        """Returns a table of TRACE_SCHEMA: without traces of headers that lie in the images of a shard.

        Each image there holds some of those: the tables that every encoder writes. An offset is -1 for a trace in the
        values of a compressed column.
        """
        images = image_ranges(file.provenance) if file.provenance else None
        tables = [self._found(file.uri, data, start, images) for start, data in _chunks(file.uri, file.size)]
        if file.uri.split("?")[0].endswith(".parquet"):
            tables += [self._found(file.uri, memoryview(data), None, None) for data in _compressed_values(file.uri)]
        return pa.concat_tables([TRACE_SCHEMA.empty_table(), *tables])

    def _found(self, uri: str, data: memoryview, start: int | None, images: Ranges | None) -> pa.Table:
        found = [traces.find(data) for traces in self.traces]
        offsets = np.concatenate([np.empty(0, np.int64), *(each for each, _ in found)])
        of_pixels = np.concatenate([np.empty(0, bool), *(each for _, each in found)])
        places = np.full(len(offsets), -1) if start is None else start + offsets
        if images is not None:
            counts = of_pixels | (rows_at(images, places) < 0)
            places, of_pixels = places[counts], of_pixels[counts]
        return pa.table([pa.array([uri] * len(places), pa.string()), places, of_pixels], schema=TRACE_SCHEMA)


def image_ranges(provenance: str) -> Ranges:
    """Returns (first byte, bytes) of each image of a shard: both int64 [N]. provenance: URI of that of its rows."""
    table = read_table(provenance, ["offset", "bytes"])
    return table["offset"].to_numpy(), table["bytes"].to_numpy().astype(np.int64)


def rows_at(images: Ranges, offsets: Rows) -> Rows:
    """Returns int64 [N]: the row whose image the string at each offset of a shard lies in, -1 for none."""
    starts, lengths = images
    rows = (np.searchsorted(starts, offsets, side="right") - 1).clip(min=0)
    inside = (offsets >= starts[rows]) & (offsets + TRACE_BYTES <= starts[rows] + lengths[rows])
    return np.where(inside, rows, -1)


def _chunks(uri: str, size: int) -> Iterator[tuple[int, memoryview]]:
    for start in range(0, size, _CHUNK_BYTES):
        yield start, files.read_range(uri, start, min(_CHUNK_BYTES + TRACE_BYTES - 1, size - start))


def _compressed_values(uri: str) -> Iterator[pa.Buffer]:
    """Yields the values of the compressed columns of a Parquet file; none if it can't be read as one."""
    filesystem, path = files.open_filesystem(uri)
    with filesystem.open_input_file(path) as stream:
        try:
            file = pq.ParquetFile(stream)
        except pa.ArrowInvalid:  # it is called so and isn't one: its bytes have been searched
            return
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            columns = [group.column(index) for index in range(group.num_columns)]
            if any(column.compression != "UNCOMPRESSED" for column in columns):
                for column in file.read_row_group(number).itercolumns():
                    for chunk in column.chunks:
                        yield from _buffers(chunk)


def _buffers(array: pa.Array) -> Iterator[pa.Buffer]:
    if pa.types.is_dictionary(array.type):
        yield from _buffers(array.dictionary)
        return
    yield from (buffer for buffer in array.buffers() if buffer is not None)
