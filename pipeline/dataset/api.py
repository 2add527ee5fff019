"""The public view of a finished data set: splits of (image, label) pairs, by index."""

import operator
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import DatasetError
from pipeline.dataset.image_codec import BadImageError, decode
from pipeline.dataset.manifest import Manifest, Split, load
from pipeline.dataset.parquet import read_rows
from pipeline.dataset.row_reader import RowIndex, load_index, read_images
from pipeline.dataset.schema import shard_schema
from pipeline.storage import files
from pipeline.storage.parallel_reads import read_ahead

if TYPE_CHECKING:
    from PIL import Image

_GROUPS_AHEAD = 4
_ROWS_AT_ONCE = 64  # by iteration: enough to hide the wait of object storage, few enough to be held


@dataclass(frozen=True)
class ImageSplit(Sequence["tuple[Image.Image, int]"]):
    """The rows of one split, in the order in which they are stored: `split[i]` is (image, label).

    The image is an RGB PIL.Image; the label is an index into the classes of the data set. Any thread may read any row,
    and a copy that is pickled, for a worker process, reads by itself. Raises DatasetError if the stored bytes have
    changed since ingest.
    """

    uri: str
    """Absolute path or URI of the data set."""

    split: Split
    """Rows and shards of the split in the manifest."""

    classes: tuple[str, ...]
    """Names of the classes; a label is an index into them."""

    def __len__(self) -> int:
        return self.split.rows

    @overload
    def __getitem__(self, index: int) -> "tuple[Image.Image, int]": ...

    @overload
    def __getitem__(self, index: slice) -> "list[tuple[Image.Image, int]]": ...

    def __getitem__(self, index: int | slice) -> "tuple[Image.Image, int] | list[tuple[Image.Image, int]]":
        if isinstance(index, slice):
            return self._read(range(*index.indices(len(self))))
        index = operator.index(index)
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"row {index} of a split of {len(self):,} rows")
        return self._read([row])[0]

    def __iter__(self) -> "Iterator[tuple[Image.Image, int]]":
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._read(range(start, min(start + _ROWS_AT_ONCE, len(self))))

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """Returns int32 [N]: the label of each row, without reading an image."""
        return self._index.label

    def to_arrow(self) -> pa.RecordBatchReader:
        """Returns all rows for other libraries, batch by batch: key, label, image (the encoded bytes), height, width.

            table = data["train"].to_arrow().read_all()  # pyarrow
            frame = data["train"].to_arrow().read_pandas()
            images = datasets.Dataset(table).cast_column("image", datasets.Image())  # Hugging Face

        Rows that a version of the data set leaves out aren't in it, and labels are those of the version. A batch is one
        row group, so a reader that takes them one by one needs little memory. Reading raises DatasetError if a file of
        the data set is missing or damaged.
        """
        ends = np.cumsum(self.split.row_group_rows)
        spans = list(zip((ends - self.split.row_group_rows).tolist(), ends.tolist(), strict=True))
        schema = shard_schema(self.classes)

        def batches() -> Iterator[pa.RecordBatch]:
            with ThreadPoolExecutor(_GROUPS_AHEAD) as pool:
                for _, table in read_ahead(pool, read, spans, in_order=True, max_pending=_GROUPS_AHEAD):
                    yield from table.cast(schema).to_batches()

        def read(span: tuple[int, int]) -> pa.Table:
            return read_rows(self.uri, self.split, np.arange(*span), tuple(schema.names)).combine_chunks()

        return pa.RecordBatchReader.from_batches(schema, batches())

    @cached_property
    def _index(self) -> RowIndex:
        return load_index(self.uri, self.split)

    def _read(self, rows: Sequence[int]) -> "list[tuple[Image.Image, int]]":
        index = self._index
        images = read_images(index, np.array(rows, dtype=np.int64))
        return [(_to_image(index, row, data), int(index.label[row])) for row, data in zip(rows, images, strict=True)]

    def __getstate__(self) -> dict[str, object]:
        return {
            "uri": self.uri,
            "split": self.split,
            "classes": self.classes,
        }  # the index is read again, once a process

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)


def _to_image(index: RowIndex, row: int, data: memoryview) -> "Image.Image":
    from PIL import Image

    try:
        return Image.fromarray(decode(data))
    except BadImageError as error:  # a data set that was ingested without decoding its images
        raise DatasetError(f"{index.place(row)}: {error}; ingest again with --checks decode") from error


@dataclass(frozen=True)
class Dataset:
    """A finished data set: `dataset["train"]` is its training split, an `ImageSplit`."""

    uri: str
    """Absolute path or URI of the data set."""

    manifest: Manifest
    """Everything that is known of the data set but its rows."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        return self.manifest.classes

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, "train" and "val" among them."""
        return tuple(self.manifest.splits)

    def __getitem__(self, name: str) -> ImageSplit:
        """Returns a split. Raises DatasetError, with the names of the splits, if there is none of this name."""
        return ImageSplit(self.uri, self.manifest.split(name), self.classes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)


def open_dataset(uri: str | os.PathLike[str]) -> Dataset:
    """Returns the finished data set at a path or URI, without reading any image.

        data = open_dataset("data/photos")
        image, label = data["train"][0]
        print(len(data["val"]), data.classes[label], image.size)

    Raises DatasetError if there is no data set, or its manifest is damaged.
    """
    place = files.absolute(os.fspath(uri))
    return Dataset(place, load(place))
