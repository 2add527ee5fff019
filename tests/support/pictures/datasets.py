"""Ingest a small data set in this process, copy it, and a source of digits that grows."""

import numpy as np
import pyarrow as pa

from pipeline.core.progress import silent
from pipeline.dataset.manifest import Manifest, load
from pipeline.dataset.parquet import read_rows
from pipeline.ingestion.changes.onto import Parent, compare_with
from pipeline.ingestion.image_check import ImageHandling
from pipeline.ingestion.plan import IngestSettings
from pipeline.ingestion.publish import IngestPlan, publish
from pipeline.ingestion.quarantine import quarantine_table, write_quarantine
from pipeline.ingestion.shard_task import ShardContext, make_shard
from pipeline.ingestion.sources import Index
from pipeline.ingestion.target import WORK
from pipeline.storage import files as storage
from pipeline.storage import lease


def ingest_here(
    index: Index,
    out: str,
    seed: int = 0,
    shard_size: int = 100_000,
    handling: ImageHandling | None = None,
    parent: Parent | None = None,
) -> Manifest:
    """Ingests without Ray, by the functions that the Ray tasks call. parent: what a version is made of."""
    settings = IngestSettings(seed, shard_size, handling or ImageHandling())
    with lease.hold_lease(storage.join(out, WORK, "lease.json"), out) as held:
        plan = IngestPlan("", index, out, settings, held, parent and compare_with(parent, index, silent))
        rows = plan.to_write
        context = ShardContext("", out, index.encoding, index.classes, settings)
        receipts = [make_shard(rows.splits[s.split].take(pa.array(s.rows)), s, context) for s in plan.shards]
        write_quarantine(out, quarantine_table(index, receipts))
        manifest = publish(plan, receipts, silent)
    storage.delete_tree(storage.join(out, WORK))
    return manifest


class Source:
    """The digits as class folders in a bucket: val in full, train from image to image."""

    def __init__(self, dataset: str, uri: str) -> None:
        self.uri, data = uri, load(dataset)
        self.classes = data.classes
        for split in ("train", "val"):
            table = read_rows(dataset, data.split(split), np.arange(data.split(split).rows))
            lines = list(zip(table["label"].to_pylist(), table["image"].to_pylist(), strict=True))
            if split == "val":
                for number, (label, image) in enumerate(lines):
                    self._put(f"val/{self.classes[label]}/{number:05d}.png", image)
            else:
                self._train = lines

    def _put(self, name: str, image: bytes) -> None:
        storage.write_bytes(f"{self.uri}/{name}", image)

    def add(self, first: int, last: int, wrong: float = 0.0) -> None:
        """Adds training images, a share of them with a wrong label."""
        generator = np.random.default_rng(first)
        for number, (label, image) in enumerate(self._train[first:last], first):
            shown = (label + int(generator.integers(1, 10))) % 10 if generator.random() < wrong else label
            self._put(f"train/{self.classes[shown]}/{number:05d}.png", image)


def copied(dataset: str, target: str) -> str:
    """Copies a data set to another place, such as a bucket, and returns `target`."""
    for name, _ in storage.list_files(dataset):
        storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(dataset, name)))
    return target
