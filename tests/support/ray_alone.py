"""Batches made by Ray Data tasks alone, in order: a reference for those that threads and tasks make together."""

from collections.abc import Generator
from typing import Any

from pipeline.cluster.ray_tasks import TASK_CPUS, map_in_order
from pipeline.dataset.manifest import Split
from pipeline.dataset.row_reader import load_index
from pipeline.loader.batch import Batch, batch_from_columns
from pipeline.loader.samplers import Sampler
from pipeline.loader.streaming.ray_task import BatchTask
from pipeline.loader.transform import Transform


def task_batches(uri: str, split: Split, sampler: Sampler, transform: Transform) -> Generator[Batch]:
    """Yields the sampler's batches. Needs Ray."""
    import ray

    index = load_index(uri, split)
    task: Any = BatchTask(ray.put(index), sampler, transform, "stop")
    blocks = map_in_order(
        range(len(sampler)), lambda source: source.map_batches(task, batch_size=1, num_cpus=TASK_CPUS)
    )
    for number, block in enumerate(blocks):
        columns = {name: column[0] for name, column in block.items()}
        assert (columns["index"], columns["error"]) == (number, "")
        yield batch_from_columns(number, columns, index.key_hash, sampler.epochs(number))
