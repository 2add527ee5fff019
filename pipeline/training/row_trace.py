"""The row trace: which images each rank trained on in each step, for proofs that no row was lost or doubled."""

import json
import os

import numpy as np

from pipeline.dataset import parquet
from pipeline.dataset.manifest import Manifest
from pipeline.loader.batch import Batch
from pipeline.storage import files
from pipeline.training.job import TrainJob


class RowTrace:
    """Writes the keys of every row that this rank trains on to RUN/rows/, one line a step.

    In a local folder each line is written at once. In object storage, where nothing can be appended, a file is written
    at each checkpoint: steps that are in no checkpoint are repeated after a restart, and written then.
    """

    def __init__(self, job: TrainJob, data: Manifest, rank: int, world_size: int, first_step: int) -> None:
        split = data.split("train")
        self._keys = parquet.read_rows(job.dataset, split, np.arange(split.rows), ("key",))["key"].to_pylist()
        self._name = files.join(job.run, "rows", f"from-step-{first_step:09d}-rank-{rank}-of-{world_size}")
        self._lines: list[str] = []
        self._file = None
        if files.is_local(job.run):
            os.makedirs(os.path.dirname(self._name), exist_ok=True)
            self._file = open(f"{self._name}.jsonl", "w", buffering=1)  # noqa: SIM115 - open as long as the worker lives

    def write(self, step: int, batch: Batch) -> None:
        """Adds the line of a step."""
        line = json.dumps({"step": step, "keys": [self._keys[row] for row in batch.rows]}) + "\n"
        if self._file:
            self._file.write(line)
        else:
            self._lines.append(line)

    def flush(self, step: int) -> None:
        """Writes the lines up to `step` where they aren't written yet."""
        if not self._file:
            files.write_bytes(f"{self._name}-to-{step:09d}.jsonl", "".join(self._lines).encode())
            self._lines.clear()
