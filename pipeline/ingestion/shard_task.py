"""Makes one shard: reads its rows from the source, checks each image, and writes the shard and its provenance.

Runs in a Ray task, one for each shard, and leaves a receipt. An ingest that starts again keeps a shard only if its
receipt is of the same plan and the shard's bytes have the receipt's SHA-256.
"""

import hashlib
import json
import resource
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.cluster.ray_tasks import task_attempt
from pipeline.dataset.image_codec import MAX_IMAGE_BYTES, Buffer
from pipeline.dataset.isolated_calls import IMAGE_SECONDS, limit_time
from pipeline.dataset.manifest import Shard
from pipeline.dataset.parquet import parquet_bytes
from pipeline.ingestion.image_check import Refused, Stored, check_image, check_planes
from pipeline.ingestion.isolated_check import check_isolated
from pipeline.ingestion.plan import IngestSettings, ShardPlan
from pipeline.ingestion.shard_writer import ImageMemory, Row, provenance_table, write_shard
from pipeline.ingestion.sorting.external_sort import take_rows
from pipeline.ingestion.source_reader import gather
from pipeline.ingestion.target import WORK
from pipeline.storage import files
from pipeline.storage.request_counts import RequestCounts, requests_sent

# Most memory that a task takes besides its shard: reads in flight, one decoded image, and Python with its libraries.
TASK_OVERHEAD_BYTES = 400 << 20


def task_memory_bytes(settings: IngestSettings) -> int:
    """Returns the most memory that one task takes: its shard as rows, and once more on its way to a store."""
    return 2 * settings.shard_bytes + TASK_OVERHEAD_BYTES


Guard = Literal["none", "time", "process"]
""""time": the process ends if an image takes too long. "process": images are checked in child processes."""


@dataclass(frozen=True)
class Receipt:
    """The result of one task."""

    plan: str  # `plan_id` of the ingest
    path: str  # of the shard, below the data set
    shard: dict[str, Any]  # fields of `manifest.Shard`
    quarantined: list[dict[str, Any]]  # refused files, sorted by key
    repaired: dict[str, int]  # rows that aren't stored as they came, by what was done
    histogram: Sequence[int] | npt.NDArray[np.int64]  # [768]: counts of the values of R, G and B
    num_pixels: int
    requests: dict[str, int]  # fields of `RequestCounts`
    peak_bytes: int  # most memory that the task's process has had
    trusted: bool = False  # whether the shard was written by an earlier ingest

    @staticmethod
    def parse(text: str) -> "Receipt":
        """Returns the receipt in a JSON text, its histogram as an array: there may be tens of thousands of them."""
        values = json.loads(text)
        return Receipt(**{**values, "histogram": np.array(values["histogram"], dtype=np.int64)})

    @property
    def split(self) -> str:
        """The split that the shard belongs to."""
        return self.path.split("/")[0]


class _RefusalForm(msgspec.Struct, forbid_unknown_fields=True):
    """A line of `Receipt.quarantined`."""

    key: str
    label: int
    reason: str
    sha256: str
    bytes: int


class _ReceiptForm(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of `Receipt` in its file."""

    plan: str
    path: str
    shard: Shard
    quarantined: list[_RefusalForm]
    repaired: dict[str, int]
    histogram: list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]]
    num_pixels: int
    requests: dict[str, int]
    peak_bytes: int
    trusted: bool = False


def _is_receipt(data: bytes) -> bool:
    """Whether a file holds a receipt of this release."""
    try:
        found = msgspec.json.decode(data, type=_ReceiptForm)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return len(found.histogram) in (0, 768)


@dataclass(frozen=True)
class ShardContext:
    """Values that all tasks of an ingest share."""

    plan: str
    out: str
    encoding: str
    classes: tuple[str, ...]
    settings: IngestSettings
    removed: frozenset[bytes] = frozenset()  # SHA-256 of files that were removed for good (`changes.removed`)

    def check(self, data: Buffer, key: str) -> Stored | Refused:
        """Returns the image to be stored for the bytes of one sample, or why it is refused."""
        if self.removed and (digest := hashlib.sha256(data)).digest() in self.removed:
            return Refused("removed: at somebody's request, from all versions in this folder", digest.hexdigest())
        if self.encoding == "cifar":
            return check_planes(bytes(data), self.settings.handling)
        return check_image(data, key, self.settings.handling)

    def receipt_uri(self, path: str) -> str:
        """Returns the URI of the receipt of a shard."""
        return files.join(self.out, WORK, "receipts", f"{path}.json")

    def trusted_receipt(self, plan: ShardPlan) -> Receipt | None:
        """Returns the receipt of an earlier ingest if the shard and its provenance have the bytes it names.

        A receipt that is damaged, or of another release, proves nothing: the shard is written once more.
        """
        try:
            data = files.read_bytes(self.receipt_uri(plan.path))
            if not _is_receipt(data):
                return None
            receipt = Receipt(**json.loads(data))
            if receipt.plan != self.plan or receipt.path != plan.path:
                return None
            if not 0 <= receipt.shard["rows"] == len(plan.rows) - len(receipt.quarantined):
                return None
            for path, expected in (
                (plan.path, receipt.shard["sha256"]),
                (plan.provenance_path, receipt.shard["provenance_sha256"]),
            ):
                if hashlib.sha256(files.read_bytes(files.join(self.out, path))).hexdigest() != expected:
                    return None
        except FileNotFoundError:
            return None
        return replace(receipt, trusted=True, requests=asdict(RequestCounts()))


class _ShardRows:
    """The rows of one shard, added as their images arrive, in any order."""

    def __init__(self, samples: pa.Table, context: ShardContext, guard: Guard) -> None:
        self._context, self._guard = context, guard
        self._keys, self._labels, self._lengths = (samples[name].to_pylist() for name in ("key", "label", "length"))
        self._rows: list[Row | None] = [None] * samples.num_rows
        self.memory = ImageMemory([min(length, MAX_IMAGE_BYTES) for length in self._lengths])
        self.quarantined: list[dict[str, Any]] = []
        self.repaired: Counter[str] = Counter()
        self.histogram, self.num_pixels = np.zeros(768, dtype=np.int64), 0

    def read(self, samples: pa.Table) -> None:
        """Reads and adds all rows. Files that are empty or too large to be stored are refused without a read."""
        for position, length in enumerate(self._lengths):
            if length == 0:
                self._add(position, b"", self._check(b"", position))
            elif length > MAX_IMAGE_BYTES:
                self._refuse(position, f"too large: {length:,} bytes, the limit is {MAX_IMAGE_BYTES:,}", "")
        unreadable: dict[int, str] = {}
        if self._guard == "process":
            for (position, data), image in check_isolated(samples, self._check, unreadable):
                self._add(position, data, image)
        else:
            for position, data in gather(samples, unreadable):
                self._add(position, data, self._check(data, position))
        for position, reason in unreadable.items():
            self._refuse(position, reason, "")
        self.quarantined.sort(key=lambda entry: str(entry["key"]))

    def kept(self) -> list[Row]:
        """Returns the rows to be written, in the order of the plan."""
        return [row for row in self._rows if row is not None]

    def _check(self, data: Buffer, position: int) -> Stored | Refused:
        if self._guard != "time":
            return self._context.check(data, self._keys[position])
        limit_time(IMAGE_SECONDS)
        try:
            return self._context.check(data, self._keys[position])
        finally:
            limit_time(0)

    def _add(self, position: int, data: Buffer, image: Stored | Refused) -> None:
        if isinstance(image, Refused):
            self._refuse(position, image.reason, image.source_sha256)
            return
        place = None
        if image.data is data:  # stored as it came: copied out of the read buffer at once, to its place in the shard
            place = self.memory.keep(position, data)
            image = replace(image, data=self.memory.view[place : place + len(data)])
        self._rows[position] = Row(self._keys[position], self._labels[position], image, place)
        if image.repair:
            self.repaired[kind_of(image.repair)] += 1
        if image.facts is not None:
            self.histogram += image.facts.histogram
            self.num_pixels += image.height * image.width

    def _refuse(self, position: int, reason: str, sha256: str) -> None:
        entry = {"key": self._keys[position], "label": self._labels[position], "reason": reason, "sha256": sha256}
        self.quarantined.append({**entry, "bytes": self._lengths[position]})


def make_shard(samples: pa.Table, plan: ShardPlan, context: ShardContext, guard: Guard = "none") -> Receipt:
    """Reads, checks and writes the rows of one shard and their provenance. samples: rows of the index table.

    guard: what protects the task from an image that a library doesn't survive. The bytes are the same with each.
    """
    before = requests_sent()
    rows = _ShardRows(samples, context, guard)
    rows.read(samples)
    kept = rows.kept()
    place = files.join(context.out, plan.path)
    written, offsets = write_shard(place, kept, context.classes, plan.row_group_rows, rows.memory)
    provenance = parquet_bytes(provenance_table(kept, offsets))
    files.write_bytes(files.join(context.out, plan.provenance_path), provenance)
    return Receipt(
        plan=context.plan,
        path=plan.path,
        shard={
            "path": plan.path,
            "rows": len(kept),
            **asdict(written),
            "provenance_path": plan.provenance_path,
            "provenance_sha256": hashlib.sha256(provenance).hexdigest(),
        },
        quarantined=rows.quarantined,
        repaired=dict(rows.repaired),
        histogram=rows.histogram.tolist(),
        num_pixels=rows.num_pixels,
        requests=asdict(requests_sent().plus(before, -1)),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,  # Linux counts in KiB
    )


def kind_of(repair: str) -> str:
    """Returns the kind of a repair, by which repaired rows are counted."""
    # "shrunk to 500x375, ..." has as many forms as there are sizes; they are counted as one.
    return "; ".join("shrunk" if part.startswith("shrunk to") else part for part in repair.split("; "))


def count_repairs(repairs: pa.ChunkedArray) -> Counter[str]:
    """Returns the number of rows for each kind of repair. repairs: the column of the provenance."""
    counts = Counter[str]()
    for each in repairs.cast(pa.string()).value_counts().to_pylist():
        if each["values"]:
            counts[kind_of(each["values"])] += each["counts"]
    return counts


def finish_shard(plan: ShardPlan, tables: Mapping[str, pa.Table], context: ShardContext, guard: Guard) -> Receipt:
    """Makes one planned shard and leaves its receipt. tables: of the index, by split. guard: see `make_shard`."""
    receipt = make_shard(take_rows(tables[plan.split], plan.rows), plan, context, guard)
    files.write_json(context.receipt_uri(plan.path), asdict(receipt))
    return receipt


@dataclass(frozen=True)
class ShardTask:
    """Makes one planned shard unless an earlier ingest has made it; the function of a Ray task."""

    context: ShardContext
    tables: Any  # an ObjectRef of {split: index table}
    plans: Any  # an ObjectRef of list[ShardPlan]
    with_receipt: frozenset[str]  # paths of shards that have a receipt

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """batch: {"id": int64 [1]}, the index of the plan. Returns one row: id, and the receipt as JSON."""
        import ray

        number = int(batch["id"][0])
        plan: ShardPlan = ray.get(self.plans)[number]
        receipt = self.context.trusted_receipt(plan) if plan.path in self.with_receipt else None
        if receipt is None:
            # A task whose process has died is tried again by Ray. It may have died of an image: find out which.
            guard: Guard = "process" if task_attempt() else "time"
            receipt = finish_shard(plan, ray.get(self.tables), self.context, guard)
        return {"id": np.array([number]), "receipt": np.array([json.dumps(asdict(receipt))])}
