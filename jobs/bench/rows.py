"""Measures the driver of an ingest and the ranks of a training run as rows grow: seconds and memory of each stage.

The index of a source, its receipts and its provenance are made up, as those of ImageNet's archives would be: no image
is read. `ingest` is one process, as `jobs/ingest.py` is; each rank is a process of its own. Anonymous memory is what a
process can't give back; pages of mapped files are shared by the processes of a node, and the system may take them.

Examples:
    uv run jobs/bench/rows.py --rows 1000000
    uv run jobs/bench/rows.py --rows 14000000 --classes 21841
    uv run jobs/bench/rows.py --rows 100000000 --classes 21841 --folder /mnt/disk --only plan
"""

import hashlib
import json
import math
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.terminal import command
from pipeline.dataset import manifest
from pipeline.dataset.parquet import parquet_bytes
from pipeline.dataset.row_reader import load_index
from pipeline.dataset.schema import PROVENANCE_SCHEMA
from pipeline.ingestion.plan import IngestSettings, plan_id, plan_shards
from pipeline.ingestion.publish import IngestPlan, build_manifest
from pipeline.ingestion.quarantine import quarantine_table
from pipeline.ingestion.shard_task import Receipt
from pipeline.ingestion.sorting.external_sort import in_memory_or_mapped
from pipeline.ingestion.sources.index import INDEX_SCHEMA, Index, sorted_table
from pipeline.loader.sample_order import Order
from pipeline.storage import files
from pipeline.storage.lease import hold_lease

_PART_ROWS = 1 << 20
_MEAN_BYTES = 110_000  # of an image, as ImageNet's
_SHARD_ROWS, _GROUP_ROWS = 1830, 64  # of 192 and 8 MiB
_REFUSED = 10_000  # one row of so many can't be used
_FAR = 2_654_435_761  # a prime, which scatters the rows over the shards
_STEPS, _BATCH, _RANKS = 1000, 1024, 8


@dataclass(frozen=True)
class Args:
    """Flags."""

    rows: Annotated[int, command.option("rows of the train split", "N", "1,000,000")] = 1_000_000
    classes: Annotated[int, command.option("classes", "N", "1,000")] = 1000
    folder: Annotated[str | None, command.option("where some 200 bytes a row are written", "DIR", "temporary")] = None
    only: Annotated[
        tuple[Literal["plan", "shards", "publish", "ranks"], ...],
        command.option("parts, in a folder that is kept: for many rows, where each takes minutes", "PART...", "all"),
    ] = ("plan", "shards", "publish", "ranks")


@dataclass(frozen=True)
class Stage:
    """What a stage took."""

    process: str
    name: str
    seconds: float
    peak_mib: float  # most anonymous memory of the process during the stage
    mapped_mib: float  # most pages of files


def main(args: Args) -> None:
    """Measures each stage and prints a table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.abspath(args.folder or temporary)
        os.environ["XDG_CACHE_HOME"] = os.path.join(folder, "cache")
        os.makedirs(os.path.join(folder, "cache"), exist_ok=True)
        stages: list[Stage] = []
        for part in args.only:
            if part == "shards":
                _write_shards(args, folder)
            elif part == "ranks":
                shutil.rmtree(os.path.join(folder, "cache"))
                os.mkdir(os.path.join(folder, "cache"))
                for name in ("rank 0", "rank 1"):
                    stages += _in_process(partial(_rank, args, folder, name))
            else:
                work = _plan if part == "plan" else _publish
                stages += _in_process(partial(work, args, folder, "ingest"))
        rows = [
            (
                f"{each.process}: {each.name}",
                f"{each.seconds:,.2f} s, {each.peak_mib:,.0f} MiB, and {each.mapped_mib:,.0f} MiB of files",
            )
            for each in stages
        ]
        command.print_table(f"{args.rows:,} rows of {args.classes:,} classes", rows)


def _in_process(work: Callable[[Any], None]) -> list[Stage]:
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=work, args=(results,))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a process ended with status {process.exitcode}")
    found: list[Stage] = results.get()
    return found


class Measured:
    """The stages of this process."""

    def __init__(self, process: str) -> None:
        self.process, self.stages = process, list[Stage]()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures what is done inside."""
        over, peaks = threading.Event(), [0.0, 0.0]
        thread = threading.Thread(target=_watch, args=(over, peaks), daemon=True)
        thread.start()
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        over.set()
        thread.join()
        self.stages.append(Stage(self.process, name, seconds, *peaks))
        command.console.print(f"{self.process}: {name}: {seconds:,.2f} s, {peaks[0]:,.0f} + {peaks[1]:,.0f} MiB")


def _watch(over: threading.Event, peaks: list[float]) -> None:
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    while True:
        ending = over.is_set()
        resident, shared = (int(each) for each in Path("/proc/self/statm").read_text().split()[1:3])
        peaks[:] = [max(peaks[0], (resident - shared) * page), max(peaks[1], shared * page)]
        if ending:
            return
        over.wait(0.01)


# --- the process of an ingest ------------------------------------------------------------------------------------


def _plan(args: Args, folder: str, name: str, results: Any) -> None:
    measured, settings = Measured(name), IngestSettings()
    with measured.stage("start"):
        pass
    with measured.stage("index, sorted and checked"):
        splits = {split: sorted_table(_source(split, rows, args.classes)) for split, rows in _splits(args).items()}
        index = Index("rows", "imagenet-archives", _classes(args), "file", splits, "fingerprint")
    with measured.stage("plan of the shards"):
        shards = plan_shards(index, settings)
    with measured.stage("identity of the plan"):
        plan_id(index, settings, shards)
    results.put(measured.stages)


def _publish(args: Args, folder: str, name: str, results: Any) -> None:
    """What follows when all shards are written. The index isn't sorted again, which nothing here needs."""
    measured, settings = Measured(name), IngestSettings()
    tables = {split: in_memory_or_mapped(_source(split, rows, args.classes)) for split, rows in _splits(args).items()}
    index = Index("rows", "imagenet-archives", _classes(args), "file", tables, "fingerprint")
    with measured.stage("receipts"), open(_receipts_file(folder)) as lines:
        receipts = [Receipt.parse(line) for line in lines]
    with measured.stage("quarantine"):
        refused = quarantine_table(index, receipts)
        assert refused.num_rows == sum(len(each.quarantined) for each in receipts)
    with measured.stage("manifest and digest of the source"), hold_lease(f"{folder}/lease.json", folder) as lease:
        made = build_manifest(IngestPlan("source", index, folder, settings, lease), receipts)
    with measured.stage("manifest's digest and JSON"):
        made = made.with_digest()
        files.write_bytes(files.join(folder, manifest.MANIFEST_NAME), made.to_json())
    results.put(measured.stages)


def _splits(args: Args) -> dict[str, int]:
    return {"train": args.rows, "val": args.classes}


def _classes(args: Args) -> tuple[str, ...]:
    return tuple(f"n{number:08d}" for number in range(args.classes))


def _receipts_file(folder: str) -> str:
    return os.path.join(folder, "receipts.jsonl")


def _source(split: str, rows: int, classes: int) -> Iterator[pa.Table]:
    """Yields an index of tars, one for each class, in the order in which they are listed."""
    draws = np.random.default_rng(0)
    for start in range(0, rows, _PART_ROWS):
        number = np.arange(start, min(start + _PART_ROWS, rows))
        labels = (number * classes // rows).astype(np.int32)
        lengths = draws.lognormal(np.log(_MEAN_BYTES) - 0.125, 0.5, len(number)).astype(np.int64)
        wnids = _wnids(labels)
        objects = pc.binary_join_element_wise(f"/source/{split}/n", wnids, ".tar", "").dictionary_encode()
        columns = [_keys(split, wnids, number), labels, objects, np.cumsum(lengths) - lengths, lengths]
        yield pa.table(columns, schema=INDEX_SCHEMA)


def _wnids(labels: Any) -> pa.Array:
    return pc.utf8_lpad(pa.array(labels).cast(pa.string()), 8, "0")


def _keys(split: str, wnids: pa.Array, number: Any) -> pa.Array:
    texts = pa.array(number).cast(pa.string())
    return pc.binary_join_element_wise(f"{split}/n", wnids, "/n", wnids, "_", texts, ".JPEG", "")


# --- what the tasks of an ingest leave -----------------------------------------------------------------------------


def _write_shards(args: Args, folder: str) -> None:
    """Writes the provenance of all shards, without pixels' facts, and their receipts. Goes on where it stopped."""
    work = [
        (split, number, -(-rows // _SHARD_ROWS))
        for split, rows in _splits(args).items()
        for number in range(-(-rows // _SHARD_ROWS))
    ]
    done = 0
    if os.path.exists(_receipts_file(folder)):
        with open(_receipts_file(folder)) as lines:
            done = sum(1 for _ in lines)
    make = partial(_write_shard, args, folder)
    with open(_receipts_file(folder), "a") as out, multiprocessing.get_context("spawn").Pool(2) as pool:
        for text in pool.imap(make, work[done:], chunksize=32):
            out.write(text + "\n")


def _write_shard(args: Args, folder: str, place: tuple[str, int, int]) -> str:
    """Returns the receipt of a shard as JSON. place: its split, its number, and how many there are."""
    split, shard, count = place
    rows = _splits(args)[split]
    draws = np.random.default_rng(shard)
    positions = np.arange(shard * _SHARD_ROWS, min((shard + 1) * _SHARD_ROWS, rows))
    numbers = positions * _FAR % rows if math.gcd(_FAR, rows) == 1 else positions
    refused = numbers[numbers % _REFUSED == 1]
    kept = numbers[numbers % _REFUSED != 1]
    path = f"{split}/{shard:05d}-of-{count:05d}.parquet"
    table, provenance = _provenance(split, kept, args.classes, rows, draws)
    files.write_bytes(files.join(folder, f"provenance/{path}"), provenance)
    groups = [min(_GROUP_ROWS, len(kept) - start) for start in range(0, len(kept), _GROUP_ROWS)]
    receipt = Receipt(
        plan="",
        path=path,
        shard={
            "path": path,
            "rows": len(kept),
            "bytes": int(table["bytes"].to_numpy().sum()),
            "sha256": draws.bytes(32).hex(),
            "row_group_rows": groups,
            "row_group_offsets": draws.integers(2**27, 2**28, len(groups)).tolist(),
            "row_group_bytes": draws.integers(2**22, 2**23, len(groups)).tolist(),
            "provenance_path": f"provenance/{path}",
            "provenance_sha256": hashlib.sha256(provenance).hexdigest(),
        },
        quarantined=[
            {"key": key, "label": 0, "reason": "truncated", "sha256": "0" * 64, "bytes": 9}
            for key in _keys(split, _wnids(refused * args.classes // rows), refused).to_pylist()
        ],
        repaired={},
        histogram=draws.integers(2**20, 2**24, 768).tolist(),
        num_pixels=2**28,
        requests={},
        peak_bytes=2**29,
    )
    return json.dumps(asdict(receipt))


def _provenance(
    split: str, numbers: Any, classes: int, rows: int, draws: np.random.Generator
) -> tuple[pa.Table, bytes]:
    """Returns the provenance of some rows, and its file."""
    labels = numbers * classes // rows
    wnids = _wnids(labels)
    lengths = draws.integers(50_000, 170_000, len(numbers))
    data = pa.py_buffer(draws.bytes(32 * len(numbers)))
    shas = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(numbers), [None, data])
    known = {
        "key": _keys(split, wnids, numbers),
        "label": labels,
        "height": draws.integers(200, 600, len(numbers)),
        "width": draws.integers(200, 600, len(numbers)),
        "bytes": lengths,
        "offset": 4 + np.cumsum(lengths) - lengths,
        "crc32": draws.integers(0, 2**32, len(numbers)),
        "source_sha256": shas,
    }
    columns = [
        pa.array(known[field.name]).cast(field.type) if field.name in known else pa.nulls(len(numbers), field.type)
        for field in PROVENANCE_SCHEMA
    ]
    table = pa.Table.from_arrays(columns, schema=PROVENANCE_SCHEMA)
    return table, parquet_bytes(table)


# --- the process of a rank ---------------------------------------------------------------------------------------


def _rank(args: Args, folder: str, name: str, results: Any) -> None:
    measured, rank = Measured(name), int(name.split()[1])
    with measured.stage("start"):
        pass
    with measured.stage("manifest"):
        split = manifest.load(folder).split("train")
    with measured.stage("index of the rows"):
        index = load_index(folder, split)
    for kind, window in (("windows of 32 row groups", 32), ("one window over all", None)):
        with measured.stage(f"order, {kind}: first batch"):
            order = Order(split.row_group_rows, 0, _BATCH * _RANKS, window)
            rows = order.rows(0, _RANKS, rank)
            assert 0 < len(index.offset[rows]) <= _BATCH
        with measured.stage(f"order, {kind}: {_STEPS:,} more"):
            for step in range(1, 1 + min(_STEPS, order.steps_per_epoch - 1)):
                index.offset[order.rows(step, _RANKS, rank)]
        del order
    results.put(measured.stages)


if __name__ == "__main__":
    command.run(main, Args, __doc__)
