"""Raw images -> Parquet shards + manifest, by Ray Data.

The plan is a pure function of the index and a seed: the rows of a split, sorted by the draws of their keys, are
cut into shards of nearly equal size. One Ray task gathers the bytes of one shard and writes it. So the same source
and seed give the same bytes for any number of workers, and there is no all-to-all shuffle.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline import storage
from pipeline.draws import Stream, key_hash, permutation
from pipeline.errors import DatasetError, SourceError
from pipeline.manifest import MANIFEST_NAME, Manifest, Shard, Split, is_dataset
from pipeline.order import cut
from pipeline.progress import Progress, silent
from pipeline.sources import Index, open_source

CARD_NAME = "README.md"
SHARD_BYTES = 128 << 20
SHARD_ROWS = 8192
ROW_GROUP_BYTES = 8 << 20
ROW_GROUP_ROWS = (16, 512)
MAX_IMAGE_PIXELS = 100_000_000
_NEAREST_TOUCHING_READ_BYTES = 64 << 10


@dataclass(frozen=True)
class ShardPlan:
    """What one task writes: rows `rows` of the split's index table, in this order, to `path` below the target."""

    split: str
    path: str
    rows: npt.NDArray[np.int64]
    row_group_rows: int


def plan_shards(index: Index, seed: int, shard_bytes: int = SHARD_BYTES) -> list[ShardPlan]:
    """Returns the shards of every split; each row of the index is in one of them, once."""
    plans = []
    for split, table in index.splits.items():
        order = permutation(seed, 0, Stream.SHARD, key_hash(table["key"].to_pylist()))
        lengths = table["length"].to_numpy()
        num_bytes = int(lengths.sum())
        num_shards = max(1, -(-num_bytes // shard_bytes), -(-table.num_rows // SHARD_ROWS))
        group_rows = _row_group_rows(num_bytes / table.num_rows)
        for number in range(num_shards):
            start, stop = cut(table.num_rows, num_shards, number)
            path = f"{split}/{number:05d}-of-{num_shards:05d}.parquet"
            plans.append(ShardPlan(split, path, order[start:stop], group_rows))
    return plans


def _row_group_rows(mean_bytes: float) -> int:
    # A power of two near ROW_GROUP_BYTES: the unit of random access, large enough for one ranged GET to pay.
    fitting = int(2 ** np.floor(np.log2(max(1.0, ROW_GROUP_BYTES / mean_bytes))))
    return min(max(fitting, ROW_GROUP_ROWS[0]), ROW_GROUP_ROWS[1])


def shard_schema(classes: tuple[str, ...]) -> pa.Schema:
    """The columns of a shard, with the metadata by which Hugging Face `datasets` knows images and class names."""
    features = {
        "key": {"dtype": "string", "_type": "Value"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "image": {"_type": "Image"},
        "height": {"dtype": "int32", "_type": "Value"},
        "width": {"dtype": "int32", "_type": "Value"},
    }
    return pa.schema(
        [
            ("key", pa.string()),
            ("label", pa.int32()),
            ("image", pa.binary()),
            ("height", pa.int32()),
            ("width", pa.int32()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def dataset_card(manifest: Manifest) -> str:
    """Returns the data set's README.md, whose header lets `datasets.load_dataset(FOLDER)` decode the images.

    The shards' own metadata says the same, but `datasets` heeds that only for columns stored as it would store
    them (label int64, image a struct).
    """
    files = [{"split": name, "path": f"{name}/*.parquet"} for name in manifest.splits]
    names = {str(label): name for label, name in enumerate(manifest.classes)}
    features = [
        {"name": "key", "dtype": "string"},
        {"name": "label", "dtype": {"class_label": {"names": names}}},
        {"name": "image", "dtype": "image"},
        {"name": "height", "dtype": "int32"},
        {"name": "width", "dtype": "int32"},
    ]
    header = {"configs": [{"config_name": "default", "data_files": files}], "dataset_info": {"features": features}}
    rows = "\n".join(f"- {name}: {split.rows:,} rows" for name, split in manifest.splits.items())
    # JSON is YAML, and needs no quoting rules of its own.
    return (
        f"---\n{json.dumps(header, indent=1)}\n---\n\n# {manifest.name}\n\n{rows}\n\n"
        f"{len(manifest.classes)} classes. Digest `{manifest.digest}`, see `{MANIFEST_NAME}`.\n"
    )


def read_samples(samples: pa.Table) -> Iterator[bytes]:
    """Yields the stored bytes of each row of an index table, in its order; touching ranges are read together."""
    objects = samples["object"].to_pylist()
    offsets, lengths = samples["offset"].to_numpy(), samples["length"].to_numpy()
    images: list[bytes] = [b""] * len(objects)
    by_object: dict[str, list[int]] = {}
    for row, uri in enumerate(objects):
        by_object.setdefault(uri, []).append(row)
    for uri, rows in by_object.items():
        filesystem, path = storage.open_filesystem(uri)
        with filesystem.open_input_file(path) as stream:
            for run in _runs(sorted(rows, key=lambda row: offsets[row]), offsets, lengths):
                start = offsets[run[0]]
                data = stream.read_at(int(offsets[run[-1]] + lengths[run[-1]] - start), int(start))
                for row in run:
                    images[row] = data[offsets[row] - start : offsets[row] - start + lengths[row]]
    yield from images


def _runs(rows: list[int], offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Iterator[list[int]]:
    run = [rows[0]]
    for row in rows[1:]:
        if offsets[row] - (offsets[run[-1]] + lengths[run[-1]]) > _NEAREST_TOUCHING_READ_BYTES:
            yield run
            run = []
        run.append(row)
    yield run


def encode_planes(planes: bytes) -> bytes:
    """Returns a PNG (lossless) of 32x32 R, G and B planes."""
    from PIL import Image

    pixels = np.frombuffer(planes, dtype=np.uint8).reshape(3, 32, 32).transpose(1, 2, 0)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def image_size(data: bytes, key: str) -> tuple[int, int]:
    """Returns (height, width) from the header alone. Raises SourceError if it is no JPEG or PNG, or huge."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height, kind = *image.size, image.format
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = "is empty" if not data else f"is no readable image (it begins with {data[:16]!r})"
        raise SourceError(f"{key}: {what}; repair it or remove it from the source") from error
    if kind not in ("JPEG", "PNG"):
        raise SourceError(f"{key}: is a {kind} image, only JPEG and PNG are read; convert it")
    if height * width > MAX_IMAGE_PIXELS:
        raise SourceError(f"{key}: {width}x{height} pixels, more than {MAX_IMAGE_PIXELS:,}; remove it from the source")
    return height, width


def shard_bytes(samples: pa.Table, encoding: str, classes: tuple[str, ...], row_group_rows: int) -> bytes:
    """Returns the Parquet file of these rows, the same bytes every time. Raises SourceError on a bad image."""
    keys = samples["key"].to_pylist()
    images = list(read_samples(samples))
    if encoding == "cifar":
        images, sizes = [encode_planes(image) for image in images], [(32, 32)] * len(images)
    else:
        sizes = [image_size(image, key) for key, image in zip(keys, images, strict=True)]
    columns = [keys, samples["label"].to_pylist(), images, [h for h, _ in sizes], [w for _, w in sizes]]
    schema = shard_schema(classes)
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
    out = pa.BufferOutputStream()
    pq.write_table(
        table,
        out,
        row_group_size=row_group_rows,
        compression="none",  # JPEG and PNG are compressed; a second pass would only cost time
        use_dictionary=False,
        write_statistics=["key", "label", "height", "width"],  # of image they would copy whole images
    )
    return out.getvalue().to_pybytes()


@dataclass(frozen=True)
class ShardTask:
    """Writes one planned shard; runs in a Ray task. A bad image comes back as a row, not as a traceback."""

    out: str
    encoding: str
    classes: tuple[str, ...]
    tables: Any  # an ObjectRef of {split: index table}
    plans: Any  # an ObjectRef of list[ShardPlan]

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """batch: {"id": int64 [1]}, the plan's number. Returns one row: id, bytes, sha256, error."""
        import ray

        number = int(batch["id"][0])
        plan: ShardPlan = ray.get(self.plans)[number]
        samples = ray.get(self.tables)[plan.split].take(pa.array(plan.rows))
        error, data = "", b""
        try:
            data = shard_bytes(samples, self.encoding, self.classes, plan.row_group_rows)
            storage.write_bytes(storage.join(self.out, plan.path), data)
        except SourceError as bad_image:
            error = str(bad_image)
        return {
            "id": np.array([number]),
            "bytes": np.array([len(data)]),
            "sha256": np.array([hashlib.sha256(data).hexdigest()]),
            "error": np.array([error]),
        }


def write_shards(index: Index, plans: list[ShardPlan], out: str, progress: Progress) -> dict[int, tuple[int, str]]:
    """Runs one Ray task a shard; returns {plan number: (bytes, sha256)}. Raises SourceError on a bad image."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    task = ShardTask(out, index.encoding, index.classes, ray.put(index.splits), ray.put(plans))
    dataset = ray.data.range(len(plans), override_num_blocks=len(plans)).map_batches(task, batch_size=1)
    written: dict[int, tuple[int, str]] = {}
    done = 0
    progress("write", 0, index.num_rows)
    for row in dataset.iter_rows():
        if row["error"]:
            raise SourceError(row["error"])
        written[row["id"]] = (row["bytes"], row["sha256"])
        done += len(plans[row["id"]].rows)
        progress("write", done, index.num_rows)
    return written


def build_manifest(index: Index, plans: list[ShardPlan], written: dict[int, tuple[int, str]], seed: int) -> Manifest:
    """Returns the manifest of written shards. Raises DatasetError unless every indexed row is in one of them."""
    splits = {}
    for split, table in index.splits.items():
        shards = []
        for number, plan in enumerate(plans):
            if plan.split == split and number in written:
                rows, group = len(plan.rows), plan.row_group_rows
                groups = tuple(min(group, rows - start) for start in range(0, rows, group))
                shards.append(Shard(plan.path, rows, *written[number], row_group_rows=groups))
        counts = np.bincount(table["label"].to_numpy(), minlength=len(index.classes))
        splits[split] = Split(sum(shard.rows for shard in shards), tuple(counts.tolist()), tuple(shards))
        if splits[split].rows != table.num_rows:
            raise DatasetError(f"split {split!r}: {table.num_rows} rows indexed, {splits[split].rows} written")
    manifest = Manifest(index.name, index.classes, seed, splits)
    return Manifest(index.name, index.classes, seed, splits, digest=manifest.computed_digest())


@dataclass(frozen=True)
class IngestPlan:
    """What is to be written where: the index of the source, and its shards below the target URI."""

    index: Index
    shards: list[ShardPlan]
    out: str
    seed: int


@contextmanager
def planned(
    source: str,
    out: str,
    *,
    layout: str = "auto",
    md5: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Iterator[IngestPlan]:
    """Looks at the raw images at `source` and yields what is to be written to `out` (absolute URIs). Needs no Ray.

    What had to be unpacked lies in a spool folder below `out`, which is removed on leaving. Raises SourceError
    for bad input and DatasetError if `out` holds a data set or other files.
    """
    _check_target(out)
    spool = storage.join(out, "_spool")
    try:
        index = open_source(source, spool=spool, layout=layout, md5=md5, progress=progress)
        yield IngestPlan(index, plan_shards(index, seed), out, seed)
    finally:
        storage.delete_tree(spool)


def ingest(plan: IngestPlan, progress: Progress = silent) -> Manifest:
    """Writes what is planned and returns the manifest, which is published last. Needs a running Ray.

    Raises SourceError for an image that can't be read, DatasetError if another ingest was faster.
    """
    written = write_shards(plan.index, plan.shards, plan.out, progress)
    manifest = build_manifest(plan.index, plan.shards, written, plan.seed)
    storage.write_bytes(storage.join(plan.out, CARD_NAME), dataset_card(manifest).encode())
    if not storage.write_once(storage.join(plan.out, MANIFEST_NAME), manifest.to_json()):
        raise DatasetError(f"{plan.out}: another ingest has published a data set here meanwhile; use that one")
    return manifest


def _check_target(out: str) -> None:
    if is_dataset(out):
        raise DatasetError(f"{out}: holds a finished data set already; give another --out, or delete it first")
    if storage.stat(out).type == fs.FileType.File:
        raise DatasetError(f"{out}: is a file; give a folder for --out")
    ours = (".parquet", ".tmp", CARD_NAME)
    strangers = [
        name for name, _ in storage.list_files(out) if not name.endswith(ours) and not name.startswith("_spool/")
    ]
    if strangers:
        raise DatasetError(f"{out}: holds other files ({strangers[0]!r}); give an empty folder for --out")
